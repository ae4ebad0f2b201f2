"""Verifiers: what counts as right, what does not, and that no response can make one fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_vl.evaluation.verifiers import VERIFIERS, final_answer, verifier_for


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
