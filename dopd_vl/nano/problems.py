"""What a nano task returns: a question, its answer, privileged hints, and the reference response for training."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One question. `task` names the verifier; `response` is the reasoning that supervised training imitates."""

    question: str
    answer: str
    reasoning: str
    hints: tuple[str, ...]  # steps without execution: nothing read, no result
    hints_executed: tuple[str, ...]
    hint_summary: str
    wrong_hint: str
    task: str = "number"
    related: tuple[int, ...] = ()  # vision: the cells that the question needs, in reading order; by default all
    facts: tuple[Any, ...] = field(default=(), repr=False)  # text: what makes it this problem, whatever its phrasing

    @property
    def response(self) -> str:
        return f"{self.reasoning} Answer: {self.answer}"


def raw_record(
    place: str,
    kind: str,
    problem: Problem,
    provenance: str,
    images: Sequence[Any] = (),
    caption: str | None = None,
    boxes: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], str]:
    """The raw record of a privileged data set (docs/data.md), and the reference response, which no data set carries.

    Args:
        place: world, split, seed and index, e.g. "text-train-0-000000".
        images: PIL images, shown before the question.
    """
    record = {
        "id": f"nano-{place}-{kind}",
        "prompt": [{"role": "user", "content": f"{'<image>' * len(images)}{problem.question}"}],
        "images": list(images),
        "answer": problem.answer,
        "task": problem.task,
        "source": f"nano-{place.partition('-')[0]}/{kind}",
        "privileged": {
            "final_answer": problem.answer,
            "hints": list(problem.hints),
            "hints_executed": list(problem.hints_executed),
            "hint_summary": problem.hint_summary,
            "caption": caption,
            "boxes": list(boxes),
            "wrong_hint": problem.wrong_hint,
            "provenance": provenance,
        },
    }
    return record, problem.response


def sum_steps(numbers: Sequence[int]) -> str:
    """
    >>> sum_steps([3, 5, 8]), sum_steps([4])
    ('3+5=8 8+8=16', '4')
    """
    if len(numbers) == 1:
        return str(numbers[0])
    total, steps = numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return " ".join(steps)


def other_number(answer: int, rng: random.Random) -> int:
    """A near miss, for a wrong hint: not the answer and not negative."""
    return rng.choice([n for n in range(max(0, answer - 4), answer + 5) if n != answer])


def comparison(first: int, second: int) -> tuple[str, str]:
    """
    >>> comparison(8, 4), comparison(2, 4), comparison(3, 3)
    (('8>4', 'A'), ('2<4', 'B'), ('3=3', 'C'))
    """
    sign, letter = (">", "A") if first > second else ("<", "B") if first < second else ("=", "C")
    return f"{first}{sign}{second}", letter
