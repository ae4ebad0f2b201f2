"""One raw record, checked: `parse_record` turns what a source gave into a `Record`, or says why it cannot.

Input is never trusted. Whatever it is, the outcome is a sound record or a `RecordError`.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .annotators.replies import grounded_boxes
from .boxes import BOX_FORMATS, GRID, clip, is_empty, to_pixels
from .code_tests import MAX_TESTS, parse_tests
from .errors import ImageError, RecordError, nearest
from .fields import (
    MAX_ID,
    chat_message,
    check_keys,
    item_list,
    number_list,
    number_text,
    optional_text,
    required_text,
    shown_text,
    without_marker,
)
from .images import ImageLimits, StoredImage, load_image
from .schema import (
    BOX_KEYS,
    IMAGE_MARKER,
    PRIVILEGED_KEYS,
    TASKS,
    Box,
    Example,
    Message,
    Privileged,
    empty_privileged,
)

CLIP_TOLERANCE = 1.0
"""Pixels by which a box may stick out of its image unmentioned: sources round."""


@dataclass(frozen=True)
class Finding:
    """Something that the audit noticed about a record: one of `audit.SEVERITIES`, and what exactly."""

    code: str
    detail: str


@dataclass
class Record:
    """A sound record. `findings` holds what parsing put right, for the audit to judge."""

    id: str
    prompt: list[Message]
    images: list[StoredImage]
    answer: str
    task: str
    source: str
    privileged: Privileged
    findings: list[Finding] = field(default_factory=list)

    def example(self) -> Example:
        """The record as variants and processors take it, with PIL images."""
        return Example(
            id=self.id,
            prompt=self.prompt,
            images=[stored.image for stored in self.images],
            answer=self.answer,
            task=self.task,
            source=self.source,
            privileged=self.privileged,
        )

    def row(self) -> dict[str, Any]:
        """The record as it is written to parquet, with encoded images."""
        return {**self.example(), "images": [{"bytes": stored.data, "path": None} for stored in self.images]}

    def content_digest(self) -> bytes:
        """Equal for two records with the same prompt and the same pixels."""
        return self._digest(json.dumps(self.prompt, ensure_ascii=False).encode())

    def image_digest(self) -> bytes:
        """Equal for two records with the same pixels."""
        return self._digest(b"")

    def _digest(self, start: bytes) -> bytes:
        digest = hashlib.blake2b(start, digest_size=16)
        for stored in self.images:
            digest.update(repr(stored.size).encode())
            digest.update(stored.image.tobytes())
        return digest.digest()


def parse_record(
    raw: Any,
    *,
    index: int = 0,
    source: str = "unnamed",
    image_root: Path | None = None,
    default_task: str | None = None,
    box_format: str = "xyxy",
    limits: ImageLimits | None = None,
    tasks: Collection[str] = TASKS,
) -> Record:
    """Check one raw record and give it its final form.

    Args:
        raw: A mapping with the dataset's columns. `prompt` may be a string, a message's content may be a list of text
            and image parts, `images` may hold paths, bytes or PIL images, and `image_sizes` may say which (width,
            height) the boxes were drawn on. A `box_format` of its own goes before the argument.
            Unknown columns are ignored, unknown keys of `privileged` are errors.
        index: Position in the source; makes the id when the record has none.
        source: The value of the column `source` when the record has none.
        image_root: The folder that image paths are relative to and may not leave.
        default_task: The verifier for records that name none.
        box_format: How boxes are given, see `boxes.BOX_FORMATS`.

    Raises:
        RecordError: with the reason.
    """
    if not isinstance(raw, Mapping):
        raise RecordError(f"a record must be a mapping, not {type(raw).__name__}")
    findings: list[Finding] = []
    images = _images(raw.get("images"), image_root, limits)
    _check_sizes(raw.get("image_sizes"), images)
    task = _task(raw.get("task"), default_task, tasks)
    record = Record(
        id=_id(raw.get("id"), source, index),
        prompt=_prompt(raw.get("prompt"), len(images)),
        images=images,
        answer=_READ_ANSWER.get(task, _answer)(raw.get("answer")),
        task=task,
        source=optional_text(raw.get("source"), "source") or source,
        privileged=empty_privileged(),
        findings=findings,
    )
    own_format = raw.get("box_format")
    if own_format is not None and own_format not in BOX_FORMATS:
        raise RecordError(f"box_format {reprlib.repr(own_format)} is unknown; known: {', '.join(BOX_FORMATS)}")
    record.privileged = _privileged(raw.get("privileged"), images, own_format or box_format, findings)
    if record.privileged["final_answer"] is None and task != "code":  # tests are no answer to show
        record.privileged["final_answer"] = record.answer
    return record


def default_id(source: str, index: int) -> str:
    """The id of a record that has none."""
    return f"{source}-{index:08d}"


def _id(value: Any, source: str, index: int) -> str:
    if value is None:
        return default_id(source, index)
    if isinstance(value, int) and not isinstance(value, bool):
        value = number_text(value)
    text = required_text(value, "id").strip()
    if not text or len(text) > MAX_ID or not text.isprintable():
        raise RecordError(f"id {reprlib.repr(text)} must be 1 to {MAX_ID} printable characters")
    return text


def _prompt(value: Any, image_count: int) -> list[Message]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    messages = [chat_message(item, number) for number, item in enumerate(item_list(value, "prompt"))]
    if not messages or messages[-1]["role"] != "user":
        raise RecordError("the prompt must end with a user message")
    if not messages[-1]["content"].replace(IMAGE_MARKER, "").strip():
        raise RecordError("the last user message has no text")
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if markers and markers != image_count:
        raise RecordError(f"the prompt has {markers} {IMAGE_MARKER} markers, but the record has {image_count} images")
    return messages


def _images(value: Any, root: Path | None, limits: ImageLimits | None) -> list[StoredImage]:
    if value is None:
        return []
    single = not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray)
    images = []
    for number, item in enumerate([value] if single else item_list(value, "images")):
        try:
            images.append(load_image(item, root, limits))
        except ImageError as error:
            raise ImageError(f"image {number}: {error}") from error
    return images


def _check_sizes(value: Any, images: Sequence[StoredImage]) -> None:
    if value is None:
        return
    for number, (size, stored) in enumerate(zip(item_list(value, "image_sizes"), images, strict=False)):
        expected = tuple(number_list(size, 2, f"image_sizes[{number}]"))
        if expected != stored.size:
            raise RecordError(
                f"image {number} is {stored.size[0]} x {stored.size[1]}, but was annotated as "
                f"{expected[0]:g} x {expected[1]:g}: its boxes would be misplaced"
            )


def _answer(value: Any, where: str = "answer") -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number_text(value)
    text = required_text(value, where).strip()
    if not text:
        raise RecordError(f"{where} is empty")
    return without_marker(text, where)


def _tests(value: Any) -> str:
    """The answer of a programming problem: its tests."""
    text = required_text(value, "answer", MAX_TESTS)
    parse_tests(text)
    return text


def _box_list(value: Any) -> str:
    """The answer of a grounding problem: its boxes, in thousandths."""
    text = _answer(value)
    try:
        grounded_boxes(text, (GRID, GRID))
    except RecordError as error:
        raise RecordError(f"answer: {str(error).replace('the reply', 'it', 1)}") from error
    return text


_READ_ANSWER = {"code": _tests, "boxes": _box_list}


def _task(value: Any, default: str | None, tasks: Collection[str]) -> str:
    if value is None:
        value = default
    if value is None:
        raise RecordError(f"task is missing; set the source's default_task ({', '.join(tasks)})")
    text = required_text(value, "task")
    if text not in tasks:
        raise RecordError(f"task {reprlib.repr(text)} is unknown; {nearest(text[:MAX_ID], tasks)}")
    return text


def _privileged(value: Any, images: Sequence[StoredImage], box_format: str, findings: list[Finding]) -> Privileged:
    if value is None:
        return empty_privileged()
    if not isinstance(value, Mapping):
        raise RecordError(f"privileged must be a mapping, not {type(value).__name__}")
    check_keys(value, PRIVILEGED_KEYS, "privileged")
    answer = value.get("final_answer")
    return Privileged(
        final_answer=None if answer is None or answer == "" else _answer(answer, "privileged.final_answer"),
        hints=_hints(value.get("hints"), "privileged.hints"),
        hints_executed=_hints(value.get("hints_executed"), "privileged.hints_executed"),
        hint_summary=shown_text(value.get("hint_summary"), "privileged.hint_summary"),
        caption=shown_text(value.get("caption"), "privileged.caption"),
        boxes=_boxes(value.get("boxes"), images, box_format, findings),
        wrong_hint=shown_text(value.get("wrong_hint"), "privileged.wrong_hint"),
        provenance=optional_text(value.get("provenance"), "privileged.provenance"),
    )


def _hints(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    hints = [shown_text(item, f"{where}[{number}]") for number, item in enumerate(item_list(value, where))]
    return [hint for hint in hints if hint is not None]


def _boxes(value: Any, images: Sequence[StoredImage], box_format: str, findings: list[Finding]) -> list[Box]:
    if value is None:
        return []
    if isinstance(value, Mapping):  # one list for each key, as Hugging Face stores sequences of mappings
        columns = {key: item_list(column, f"privileged.boxes[{key!r}]") for key, column in value.items()}
        if len({len(column) for column in columns.values()}) > 1:
            raise RecordError("privileged.boxes has columns of different lengths")
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    boxes = []
    for number, item in enumerate(item_list(value, "privileged.boxes")):
        box = _box(item, f"privileged.boxes[{number}]", images, box_format, findings)
        if box is not None:
            boxes.append(box)
    return boxes


def _box(item: Any, where: str, images: Sequence[StoredImage], box_format: str, findings: list[Finding]) -> Box | None:
    if not isinstance(item, Mapping):
        raise RecordError(f"{where} must be a mapping with label and bbox, not {type(item).__name__}")
    check_keys(item, BOX_KEYS, where)
    index = item.get("image", 0)
    index = 0 if index is None else index
    if not isinstance(index, int | np.integer) or isinstance(index, bool) or not 0 <= index < len(images):
        raise RecordError(
            f"{where}.image is {reprlib.repr(index)}, but the record has {len(images)} images (counted from 0)"
        )
    width, height = images[int(index)].size
    raw = to_pixels(number_list(item.get("bbox"), 4, f"{where}.bbox"), box_format, width, height)
    clipped = clip(raw, width, height)
    shown = ", ".join(f"{value:g}" for value in raw)
    if is_empty(clipped):
        findings.append(Finding("box_empty", f"{where} [{shown}] holds no pixel of its {width} x {height} image"))
        return None
    if max(abs(before - after) for before, after in zip(raw, clipped, strict=True)) > CLIP_TOLERANCE:
        findings.append(Finding("box_out_of_range", f"{where} [{shown}] leaves its {width} x {height} image"))
    label = item.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = number_text(label)
    return Box(
        label=" ".join((shown_text(label, f"{where}.label") or "").split()),
        bbox=list(clipped),
        caption=shown_text(item.get("caption"), f"{where}.caption"),
        image=int(index),
    )


def message_texts(prompt: Sequence[Message]) -> str:
    """All text of a prompt, for checks that compare annotations with it."""
    return "\n".join(message["content"] for message in prompt)


def user_text(prompt: Sequence[Message]) -> str:
    """What the user says: the text that makes two records the same question."""
    return "\n".join(message["content"].replace(IMAGE_MARKER, " ") for message in prompt if message["role"] == "user")
