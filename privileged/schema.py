"""What a privileged dataset holds: the columns, their types, and the features that datasets reads them with.

A dataset keeps every raw annotation. Which of them a policy gets to see (the variant) is chosen at training time,
see `privileged.rendering.variants`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypedDict, cast

if TYPE_CHECKING:
    from datasets import Features
    from PIL import Image

IMAGE_MARKER = "<image>"
"""Where an image stands in the text of a message. Images are taken in the order of the `images` column."""

ROLES = ("system", "user", "assistant")
TASKS = ["exact", "number", "choice", "math", "code", "boxes", "open"]
"""Names of the verifiers that score an answer; `dopd_vl.register_verifier` adds to them. `code`: the answer is tests,
see `records.code_tests`. `boxes`: it is boxes as Qwen3-VL writes them, see `records.grounding`. `open`: free text,
which no verifier scores."""


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


class Box(TypedDict):
    """One labelled object: `bbox` is [x1, y1, x2, y2] in pixels of the stored (upright) image number `image`."""

    label: str
    bbox: list[float]
    caption: str | None
    image: int


class Privileged(TypedDict):
    """Everything that a teacher may see and the deployed student never will. Each part may be absent."""

    final_answer: str | None
    hints: list[str]
    hints_executed: list[str]
    hint_summary: str | None
    caption: str | None
    boxes: list[Box]
    wrong_hint: str | None
    provenance: str | None


class Example(TypedDict):
    """One row, images decoded."""

    id: str
    prompt: list[Message]
    images: list[Image.Image]
    answer: str
    task: str
    source: str
    privileged: Privileged
    illusion_score: float | None
    """How much the privileged part gives the answer away, in nats, by `audit.model`; None where it was not measured."""


COLUMNS = tuple(Example.__annotations__)
MEASURED = ("illusion_score",)
"""Columns that no source brings."""
PRIVILEGED_KEYS = tuple(Privileged.__annotations__)
LIST_KEYS = ("hints", "hints_executed", "boxes")
BOX_KEYS = tuple(Box.__annotations__)


def empty_privileged() -> Privileged:
    """The privileged part of a record that carries none."""
    return cast(Privileged, {key: [] if key in LIST_KEYS else None for key in PRIVILEGED_KEYS})


@functools.cache
def features() -> Features:
    """The columns as `datasets.Features`. A function, because importing datasets takes seconds."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    box = {"label": text, "bbox": List(Value("float64")), "caption": text, "image": Value("int32")}
    lists = {key: List(box if key == "boxes" else text) for key in LIST_KEYS}
    return Features(
        {
            "id": text,
            "prompt": List({"role": text, "content": text}),
            "images": List(Image(mode="RGB")),
            "answer": text,
            "task": text,
            "source": text,
            "privileged": {key: lists.get(key, text) for key in PRIVILEGED_KEYS},
            "illusion_score": Value("float64"),
        }
    )
