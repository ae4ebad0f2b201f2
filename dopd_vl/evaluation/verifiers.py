"""Is a response right? One small function per kind of task, named by a data set's `task` column."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from dopd_vl.common.errors import ConfigurationError, RecordError, UserError, one_line
from dopd_vl.evaluation.boxes import verify_boxes
from dopd_vl.evaluation.code import code_allowed, verify_code
from dopd_vl.evaluation.mathematics import Undecided, verify_math
from privileged.schema import TASKS

_ANSWER = re.compile(r"answer\s*(?:is)?\s*[:=]?\s*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_TOLERANCE = re.compile(r"\s*(?:±|\+/-|\\pm)\s*(?=[\d.])")
_OPTION = re.compile(r"(?<![A-Za-z])\(?([A-Za-z])\)?(?![A-Za-z])")


def final_answer(response: str) -> str:
    """The answer that a response gives: its last `\\boxed{...}`, else what follows "Answer:", else its last line.

    >>> final_answer("I read 3 and 5. 3+5=8. Answer: 8")
    '8'
    """
    boxed = list(_BOXED.finditer(response))
    if boxed:
        return _balanced(response, boxed[-1].end())
    stated = list(_ANSWER.finditer(response))
    if stated:
        return response[stated[-1].end() :].strip().split("\n")[0].strip().rstrip(".").strip("*` ")
    lines = [line for line in response.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def verify_exact(response: str, answer: str) -> bool:
    """The same text, but for case, surrounding space and a final full stop."""
    return _normalise(final_answer(response)) == _normalise(answer)


def verify_number(response: str, answer: str, tolerance: float = 1e-6) -> bool:
    """The last number of the final answer is that of `answer`, within a relative tolerance, or within what `answer`
    itself allows, as in "9.8 ± 0.1".

    >>> verify_number("Answer: 1,024", "1024"), verify_number("Answer: 9.75", "9.8 ± 0.1")
    (True, True)
    """
    value, *allowed = _TOLERANCE.split(answer, maxsplit=1)
    given, wanted = _last_number(final_answer(response)), _last_number(value)
    if given is None or wanted is None:
        return False
    own = _last_number(allowed[0]) if allowed else None
    # Half a millionth on top: 9.9 is 9.8 + 0.1, though not in binary.
    limit = tolerance * max(1.0, abs(wanted)) if own is None else own * (1 + 5e-7)
    return abs(given - wanted) <= limit


def verify_choice(response: str, answer: str) -> bool:
    """The first free-standing option letter of the final answer is that of `answer`; words are compared whole."""
    given = final_answer(response)
    if len(_normalise(answer).strip("()")) != 1:
        return _normalise(given) == _normalise(answer)
    letter = _OPTION.search(given)
    return letter is not None and letter.group(1).lower() == _normalise(answer).strip("()")


def verify_open(response: str, answer: str) -> None:
    """Free text is not scored."""
    return None


Verifier = Callable[[str, str], bool | None]

VERIFIERS: dict[str, Verifier] = {
    "exact": verify_exact,
    "number": verify_number,
    "choice": verify_choice,
    "math": verify_math,
    "code": verify_code,
    "boxes": verify_boxes,
    "open": verify_open,
}
"""task name -> function of (response, reference answer); None where a response is not scored"""


def register_verifier(task: str, verifier: Verifier) -> None:
    """Make a function the verifier of a task, for training, evaluation and the preparation of data in this process.

    >>> register_verifier("shouted", lambda response, answer: response == answer.upper())
    >>> verifier_for("shouted")("YES", "yes")
    True

    Args:
        task: a name for the column `task`, which no verifier has yet.
        verifier: takes a response and the reference answer, and says whether the response is right; None: it is not
            scored. A response that it raises on counts as wrong, and is counted and told of.

    Raises:
        ConfigurationError: another verifier has that name, or this is no function.
    """
    if not task or not callable(verifier):
        raise ConfigurationError(f"register_verifier: needs a name and a function, not {task!r} and {verifier!r}")
    if VERIFIERS.setdefault(task, verifier) is not verifier:
        raise ConfigurationError(f"register_verifier: task {task!r} has a verifier already; choose another name")
    if task not in TASKS:
        TASKS.append(task)


class Verdict(NamedTuple):
    """What a verifier came to."""

    right: bool | None
    """None: not scored"""
    undecided: str = ""
    """why no verdict was come to, where the response counts as wrong for that alone"""


def judge(verifier: Verifier, response: str, answer: str) -> Verdict:
    """The verdict on a response, whatever it holds: one that a verifier fails on, or does not come to an end with, is
    wrong, and the verdict says so.

    Raises:
        UserError: no response of this task could be judged on this machine.
    """
    try:
        return Verdict(verifier(response, answer))
    except (Undecided, RecordError) as reason:
        return Verdict(False, one_line(reason)[:200])
    except UserError:
        raise
    except Exception as error:
        return Verdict(False, f"{type(error).__name__}: {one_line(error)}"[:200])


def unscored_tasks() -> dict[str, str]:
    """Tasks that no response gets a verdict on, and why."""
    unscored = {"open": "free text has no verifier"}
    if not code_allowed():
        unscored["code"] = "running a model's programs is not allowed; set allow_code: true where that is safe"
    return unscored


@dataclass(frozen=True)
class Judging:
    """How strict the verifiers are."""

    number_tolerance: float = 1e-6
    """The relative tolerance of the task `number`, where an answer has no tolerance of its own."""
    box_iou: float = 0.5
    """The least intersection over union of a box with its counterpart, in the task `boxes`."""

    def __post_init__(self) -> None:
        if not 0 <= self.number_tolerance < 1:
            raise ValueError(f"judging.number_tolerance: {self.number_tolerance} must be at least 0 and below 1")
        if not 0 < self.box_iou <= 1:
            raise ValueError(f"judging.box_iou: {self.box_iou} must be above 0 and at most 1")

    def verifiers(self) -> dict[str, Verifier]:
        return {
            **VERIFIERS,
            "number": partial(verify_number, tolerance=self.number_tolerance),
            "boxes": partial(verify_boxes, least_iou=self.box_iou),
        }


def verifier_for(task: str, verifiers: Mapping[str, Verifier] = VERIFIERS) -> Verifier:
    """The verifier of a task.

    Raises:
        ValueError: no such task.
    """
    if task not in verifiers:
        raise ValueError(f"no verifier for task {task!r}, known: {', '.join(verifiers)}")
    return verifiers[task]


def _normalise(text: str) -> str:
    return " ".join(text.strip().rstrip(".").lower().split())


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _balanced(text: str, start: int) -> str:
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return text[start:].strip()
