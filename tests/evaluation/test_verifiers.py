"""Verifiers: what counts as right, what does not, and that no response can make one fail."""

import json
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_vl.evaluation import mathematics
from dopd_vl.evaluation.mathematics import verify_math
from dopd_vl.evaluation.verifiers import VERIFIERS, Judging, Verdict, final_answer, judge, verifier_for


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("I read 3 and 5. 3+5=8. Answer: 8", "8"),
        ("Answer: 5\nNo, wait. Answer: 8.", "8"),
        ("The answer is 12", "12"),
        (r"So \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        ("just 7", "just 7"),
        ("", ""),
        (r"cut off \boxed{3", "3"),
    ],
)
def test_final_answer_is_what_the_response_settles_on(response: str, answer: str) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("task", "response", "answer", "right"),
    [
        ("exact", "Answer: Left", "left", True),
        ("exact", "Answer: the left", "left", False),
        ("number", "Answer: 1,024", "1024", True),
        ("number", "Answer: 7 apples", "7", True),
        ("number", "Answer: -3", "3", False),
        ("number", "Answer: seven", "7", False),
        ("number", "I read 7. Answer: 8", "7", False),
        ("choice", "Answer: (B)", "B", True),
        ("choice", "Answer: B) a cat", "B", True),
        ("choice", "Answer: Because", "B", False),
        ("choice", "Answer: left", "left", True),
        ("choice", "Answer: right", "left", False),
        ("number", "Answer: 9.9", "9.8 ± 0.1", True),
        ("number", "Answer: 9.91", "9.8 ± 0.1", False),
        ("number", "Answer: 0.1", "9.8 ± 0.1", False),
        ("number", "Answer: 12", r"10 \pm 2", True),
        ("math", r"Answer: \boxed{0.5}", r"\frac{1}{2}", True),
        ("math", r"\boxed{x+1}", "1+x", True),
        ("math", r"\boxed{3}", "4", False),
    ],
)
def test_verdicts(task: str, response: str, answer: str, right: bool) -> None:
    assert verifier_for(task)(response, answer) is right


@pytest.mark.parametrize("task", ["exact", "number", "choice"])
@given(response=st.text(max_size=80), answer=st.text(min_size=1, max_size=10))
def test_no_response_breaks_a_verifier(task: str, response: str, answer: str) -> None:
    assert VERIFIERS[task](response, answer) in (True, False)


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no verifier for task 'numbr', known: exact, number"):
        verifier_for("numbr")


def boxes(*entries: tuple[str, int, int, int, int]) -> str:
    return json.dumps([{"bbox_2d": list(corners), "label": label} for label, *corners in entries])


CUP, DOG = ("cup", 100, 100, 300, 300), ("dog", 500, 500, 900, 900)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (boxes(CUP, DOG), True),
        (boxes(DOG, CUP), True),
        (f"Here:\n```json\n{boxes(DOG, CUP)}\n```", True),
        # 200 x 150 of 200 x 200 is an IoU of 0.75; 200 x 90 is 0.45.
        (boxes(("Cup", 100, 100, 300, 250), DOG), True),
        (boxes(("cup", 100, 100, 300, 190), DOG), False),
        (boxes(("dog", 100, 100, 300, 300), ("cup", 500, 500, 900, 900)), False),
        (boxes(CUP), False),
        (boxes(CUP, DOG, DOG), False),
        # Labels that no record may hold, nor a number: a wrong response, and no end of the evaluation.
        ('[{"bbox_2d": [1, 2, 3, 4], "label": 7}]', False),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "<image>"}]', False),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "<|im_end|>"}]', False),
        ("[]", False),
        ("a cup and a dog", False),
        ("", False),
    ],
)
def test_boxes_are_right_when_each_has_its_counterpart_and_none_is_left_over(response: str, right: bool) -> None:
    assert verifier_for("boxes")(response, boxes(CUP, DOG)) is right


def test_no_box_is_an_answer_too() -> None:
    assert verifier_for("boxes")("[]", "[]") is True
    assert verifier_for("boxes")(boxes(CUP), "[]") is False


def test_two_boxes_of_one_label_are_assigned_as_suits_both() -> None:
    # The first response overlaps both answers by half or more; taking the nearest for it would leave the other alone.
    left, right = ("x", 0, 0, 300, 100), ("x", 100, 0, 400, 100)
    between, far = ("x", 50, 0, 350, 100), ("x", 0, 0, 290, 100)
    assert verifier_for("boxes")(boxes(between, far), boxes(left, right)) is True


def test_strictness_can_be_set() -> None:
    strict = Judging(number_tolerance=0.05, box_iou=0.8).verifiers()
    assert strict["number"]("Answer: 10.4", "10") is True
    assert strict["boxes"](boxes(("cup", 100, 100, 300, 250)), boxes(CUP)) is False
    with pytest.raises(ValueError, match=r"judging\.box_iou: 0 must be above 0"):
        Judging(box_iou=0)


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{\binom{10^9}{5 \cdot 10^8}}",
        r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    ],
    ids=["power", "binomial", "brackets"],
)
def test_mathematics_without_an_end_is_wrong_within_limits_and_the_next_is_judged(response: str) -> None:
    verdict = judge(VERIFIERS["math"], response, "5")
    assert (verdict.right, verdict.undecided) == (False, "math-verify: more than 5 seconds")
    assert judge(VERIFIERS["math"], r"\boxed{5}", "5") == Verdict(True)


def fails(response: str, answer: str) -> bool:
    raise OverflowError("int too large\nto convert")


def test_a_verifier_that_fails_is_wrong_and_says_why() -> None:
    assert judge(fails, "a", "b") == Verdict(False, "OverflowError: int too large to convert")
    assert judge(VERIFIERS["boxes"], "[]", "no boxes").right is False  # an answer that no response can be judged by


def verdict_of_a_fork(parent: int) -> None:
    right = verify_math(r"\boxed{5}", "5") and not verify_math(r"\boxed{5}", "6")
    process = mathematics._WORKER._process
    sys.exit(0 if right and process is not None and process.pid != parent else 1)


def test_a_fork_has_a_process_of_its_own_and_nothing_is_left_behind() -> None:
    assert verify_math(r"\boxed{5}", "5")
    process = mathematics._WORKER._process
    assert process is not None
    fork = multiprocessing.get_context("fork").Process(target=verdict_of_a_fork, args=(process.pid,))
    fork.start()
    fork.join(60)
    assert fork.exitcode == 0
    assert verify_math(r"\boxed{7}", "7")
    assert mathematics._WORKER._process is process

    script = (
        "from dopd_vl.evaluation import mathematics\n"
        "assert mathematics.verify_math('5', '5')\n"
        "print(mathematics._WORKER._process.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_a_process_that_was_ended_from_outside_is_replaced() -> None:
    assert verify_math(r"\boxed{5}", "5")
    process = mathematics._WORKER._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert verify_math(r"\boxed{5}", "5")
