"""Questions about annotated objects: templates make the prompt and the answer, the boxes and labels are the privilege.

Shared by every source of boxes (COCO, YOLO, Pascal VOC).
"""

from __future__ import annotations

import random
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
        absent: Per category: of all that is asked, the share (0, up to but not 1) that asks for a kind that the picture
            lacks, with a count of 0. What such a question shows as privilege is every box of the picture.
        seed: What those kinds are drawn by.
    """

    question: str
    answer: str
    task: str = "exact"
    per: str = "category"
    hints: list[str] = field(default_factory=list)
    absent: float = 0.0
    seed: int = 0

    def absent_from(self, labels: Collection[Label], kinds: Mapping[Label, int], picture: str) -> list[Label]:
        """Labels of the set to ask for in a picture that lacks them: the same ones whenever it is asked.

        A kind is drawn as often as pictures have it: were all drawn alike, nearly every question for a rare kind would
        have the answer 0.

        Args:
            labels: Of the picture.
            kinds: How many pictures of the set have each label.
            picture: What tells the picture from others.
        """
        draw = random.Random(f"{self.seed}:{picture}")
        count = int(len(labels) * self.absent / (1 - self.absent) + draw.random())
        others = {label: pictures for label, pictures in kinds.items() if label not in labels}
        drawn: list[Label] = []
        while others and len(drawn) < count:
            drawn += draw.choices(list(others), list(others.values()))
            del others[drawn[-1]]
        return drawn

    def ask(self, boxes: Sequence[Mapping[str, Any]], label: str | None = None) -> dict[str, Any]:
        """The prompt, answer, task and privilege of a raw record, from the objects that it is about (at least one).

        Args:
            label: What is asked for, where the objects need not have it.

        >>> cats = [{"label": "cat", "bbox": [0, 0, 9, 9]}, {"label": "cat", "bbox": [5, 5, 9, 9]}]
        >>> Question("How many {label}s?", "{count}").ask(cats)["answer"]
        '2'
        >>> Question("How many {label}s?", "{count}").ask(cats, "dog")["answer"]
        '0'
        """
        labels = sorted({str(box["label"]) for box in boxes})
        values = {
            "label": labels[0] if label is None else label,
            "labels": ", ".join(labels),
            "kinds": len(labels),
            "count": sum(label in (None, str(box["label"])) for box in boxes),
            "total": len(boxes),
        }
        return {
            "prompt": self.question.format(**values),
            "answer": self.answer.format(**values),
            "task": self.task,
            "privileged": {"boxes": list(boxes), "hints": [hint.format(**values) for hint in self.hints]},
        }


def asked(
    questions: Sequence[Question],
    labels: Iterable[Label],
    kinds: Mapping[Label, int],
    picture: str,
    whole: bool = True,
) -> Iterator[tuple[int, Label | None]]:
    """What to ask of an image: the number of a question, and the label that it is about or None for the whole image.

    Args:
        labels: The labels in the image. Of an image without any, nothing is asked.
        kinds: How many images of the set have each label.
        picture: What tells the image from others.
        whole: Whether everything in the image is known: only then is the whole image, or an absent kind, asked about.
    """
    labels = list(labels)
    for number, question in enumerate(questions):
        if question.per == "category":
            absent = question.absent_from(labels, kinds, f"{number}:{picture}") if whole and labels else []
            yield from ((number, label) for label in [*labels, *absent])
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
        if not 0 <= question.absent < 1 or (question.absent and question.per != "category"):
            raise ConfigurationError(
                f"{where}.absent: {question.absent} must be a share from 0 to below 1, of a question per category"
            )
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
