"""Questions about annotated objects: templates make the prompt and the answer, the boxes and labels are the privilege.

Shared by every source of boxes (COCO, YOLO, Pascal VOC).
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dopd_vl.common.configuration import check_choice, settings_of
from dopd_vl.common.errors import ConfigurationError
from privileged.schema import TASKS

Label = TypeVar("Label")

FIELDS = {
    "category": ("label", "count"),
    "image": ("labels", "kinds", "total"),
}
"""What a template may name: for each category of an image its label and the count of its boxes; for a whole image the
labels in it (alphabetic, comma-separated), how many different ones, and the count of all boxes."""


@dataclass
class Question:
    """One question to ask of every image, or of every category in every image.

    Args:
        question: Template of the prompt, e.g. "How many {label} are there?".
        answer: Template of the answer, e.g. "{count}".
        task: The verifier of the answer.
        per: "category" or "image".
        hints: Templates of step-wise hints.
    """

    question: str
    answer: str
    task: str = "exact"
    per: str = "category"
    hints: list[str] = field(default_factory=list)

    def ask(self, boxes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The prompt, answer, task and privilege of a raw record, from the objects that it is about (at least one).

        >>> cats = [{"label": "cat", "bbox": [0, 0, 9, 9]}, {"label": "cat", "bbox": [5, 5, 9, 9]}]
        >>> Question("How many {label}s?", "{count}").ask(cats)["answer"]
        '2'
        """
        labels = sorted({str(box["label"]) for box in boxes})
        values = {
            "label": labels[0],
            "labels": ", ".join(labels),
            "kinds": len(labels),
            "count": len(boxes),
            "total": len(boxes),
        }
        return {
            "prompt": self.question.format(**values),
            "answer": self.answer.format(**values),
            "task": self.task,
            "privileged": {"boxes": list(boxes), "hints": [hint.format(**values) for hint in self.hints]},
        }


def asked(
    questions: Sequence[Question], labels: Iterable[Label], whole: bool = True
) -> Iterator[tuple[int, Label | None]]:
    """What to ask of an image: the number of a question, and the label that it is about or None for the whole image.

    Args:
        labels: The labels in the image. Of an image without any, nothing is asked.
        whole: Whether questions about the whole image can be answered.
    """
    labels = list(labels)
    for number, question in enumerate(questions):
        if question.per == "category":
            yield from ((number, label) for label in labels)
        elif labels and whole:
            yield number, None


def record_id(*parts: Any) -> str:
    """
    >>> record_id("street", 7, None, 0)
    'street-7-0'
    """
    return "-".join(str(part) for part in parts if part is not None)


def read_questions(settings: Iterable[Any]) -> list[Question]:
    """The option `questions`, names and templates checked; ConfigurationError names the entry and the key."""
    questions = []
    for number, item in enumerate(settings):
        where = f"source.options.questions[{number}]"
        question = settings_of(Question, item, where)
        check_choice(question.per, tuple(FIELDS), f"{where}.per")
        check_choice(question.task, TASKS, f"{where}.task")
        for key, template in (
            ("question", question.question),
            ("answer", question.answer),
            *(("hints", hint) for hint in question.hints),
        ):
            check_template(template, FIELDS[question.per], f"{where}.{key}")
        questions.append(question)
    if not questions:
        raise ConfigurationError("source.options.questions: give at least one question")
    return questions


def check_template(template: Any, known: tuple[str, ...], where: str) -> None:
    """Raise ConfigurationError unless `template` is text whose fields are all among `known`."""
    if not isinstance(template, str):
        raise ConfigurationError(f"{where}: must be text, not {template!r}")
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error} (write a brace as {{{{ or }}}})") from error
    for name in names:
        check_choice(name, known, f"{where}: the field")
