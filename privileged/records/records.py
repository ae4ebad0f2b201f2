"""One raw record, checked: `parse_record` turns what a source gave into a `Record`, or says why it cannot.

Input is never trusted. Whatever it is, the outcome is a sound record or a `RecordError`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import ImageError, RecordError, nearest
from privileged.records.annotations import answer_text, privileged_part
from privileged.records.code_tests import parse_tests
from privileged.records.fields import (
    IMAGE_MARKS,
    MAX_ID,
    MAX_JSON,
    Finding,
    chat_message,
    image_number,
    is_visible,
    item_list,
    number_list,
    number_text,
    optional_text,
    required_text,
)
from privileged.records.grounding import grounded_boxes
from privileged.records.images import SHOWN, ImageLimits, StoredImage, load_image, pixel_bands, shown
from privileged.rendering.boxes import BOX_FORMATS, GRID
from privileged.schema import (
    COLUMNS,
    IMAGE_MARKER,
    PRIVILEGED_KEYS,
    TASKS,
    Example,
    Message,
    Privileged,
    empty_privileged,
)

READ = (*COLUMNS, "image_sizes", "box_format", *(f"privileged.{key}" for key in PRIVILEGED_KEYS))
"""The keys of a raw record that mean something."""

NEARLY = 0.82
"""How alike (difflib's ratio) a column's name is to the one that it is a slip for: as "image" and "images" are, and
"source_id" and "source" are not."""


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
    illusion_score: float | None = None

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
            illusion_score=self.illusion_score,
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
            for band in pixel_bands(stored.image):
                digest.update(band)
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
            height) the boxes were drawn on. A `box_format` of its own goes before the argument. Numbered markers
            (<image 2>) put the images in their order.
            Unknown columns are ignored, but told of where the name is nearly that of one that the record lacks; unknown
            keys of `privileged` are errors.
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
    for number, stored in enumerate(images):
        findings += [Finding(found.code, f"image {number}: {found.detail}") for found in stored.findings]
    sizes = _sizes(raw.get("image_sizes"), images)
    task = _task(raw.get("task"), default_task, tasks)
    prompt, order = _prompt(raw.get("prompt"), len(images), findings)
    record = Record(
        id=_id(raw.get("id"), source, index),
        prompt=prompt,
        images=[images[number] for number in order],
        answer=_READ_ANSWER.get(task, answer_text)(raw.get("answer")),
        task=task,
        source=optional_text(raw.get("source"), "source") or source,
        privileged=empty_privileged(),
        findings=findings,
    )
    own_format = raw.get("box_format")
    if own_format is not None and own_format not in BOX_FORMATS:
        raise RecordError(f"box_format {reprlib.repr(own_format)} is unknown; known: {', '.join(BOX_FORMATS)}")
    record.privileged = privileged_part(raw.get("privileged"), images, own_format or box_format, findings)
    boxes = record.privileged["boxes"]
    _check_turned(images, sizes, {box["image"] for box in boxes} if task != "boxes" else set(range(len(images))))
    if order != sorted(order) and any(image_number(mark) for mark in IMAGE_MARKS.findall(repr(record.privileged))):
        raise RecordError("privileged text numbers the images, whose order is changed by the prompt's markers")
    for box in boxes:
        box["image"] = order.index(box["image"])
    findings += _unread(raw, record.privileged)
    if record.privileged["final_answer"] is None and task != "code":  # tests are no answer to show
        record.privileged["final_answer"] = record.answer
    return record


def _unread(raw: Mapping[Any, Any], privileged: Privileged) -> Iterator[Finding]:
    """Columns that are not read, but may have been meant to be."""
    for key, value in raw.items():
        if not isinstance(key, str) or key in READ or _is_empty(value):
            continue
        meant = _nearly(key[:MAX_ID])
        if meant is not None and _is_empty(dict(privileged).get(meant.removeprefix("privileged."), raw.get(meant))):
            yield Finding("column_unread", f"the column {key[:MAX_ID]!r} is not read; did you mean {meant!r}?")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


@functools.lru_cache(maxsize=4096)
def _nearly(key: str) -> str | None:
    """The key of a raw record that a name is a slip for.

    >>> _nearly("imges"), _nearly("boxes"), _nearly("Answer"), _nearly("question")
    ('images', 'privileged.boxes', 'answer', None)
    """
    names = {name: name for name in READ}
    # The final answer is filled from the answer, and sets have columns for where they are from.
    names |= {part: f"privileged.{part}" for part in PRIVILEGED_KEYS if part not in ("final_answer", "provenance")}
    word = re.sub(r"[\s-]+", "_", key.strip().casefold())
    close = [word] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=NEARLY)
    return names[close[0]] if close else None


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


def _prompt(value: Any, image_count: int, findings: list[Finding]) -> tuple[list[Message], list[int]]:
    """The messages, and which image of the record each of their markers stands for."""
    if isinstance(value, str):
        if value.lstrip().startswith("[{") and len(value) <= MAX_JSON:
            _refuse_json(value)
        value = [{"role": "user", "content": value}]
    messages = [chat_message(item, number) for number, item in enumerate(item_list(value, "prompt"))]
    if not messages or messages[-1]["role"] != "user":
        raise RecordError("the prompt must end with a user message")
    marks = [mark for message in messages for mark in IMAGE_MARKS.findall(message["content"])]
    numbers = [number for mark in marks if (number := image_number(mark)) is not None]
    if numbers:
        if IMAGE_MARKER in marks or sorted(numbers) != list(range(1, image_count + 1)):
            raise RecordError(
                f"the prompt has the markers {reprlib.repr(marks)}, but the record has {image_count} images; each must "
                "stand once, numbered from 1 or not at all"
            )
        for message in messages:
            message["content"] = IMAGE_MARKS.sub(_plain_marker, message["content"])
        findings.append(Finding("markers_numbered", f"{', '.join(marks)} became {IMAGE_MARKER}"))
    markers = marks.count(IMAGE_MARKER)
    if markers and markers != image_count:
        raise RecordError(f"the prompt has {markers} {IMAGE_MARKER} markers, but the record has {image_count} images")
    unknown = [mark for mark in marks if mark != IMAGE_MARKER and image_number(mark) is None]
    if unknown:
        findings.append(Finding("marker_unknown", f"the prompt holds {unknown[0]}; an image stands at {IMAGE_MARKER}"))
    if not is_visible(messages[-1]["content"].replace(IMAGE_MARKER, "")):
        raise RecordError("the last user message has no text")
    return messages, [number - 1 for number in numbers] or list(range(image_count))


def _plain_marker(mark: re.Match[str]) -> str:
    return mark.group() if image_number(mark.group()) is None else IMAGE_MARKER


def _refuse_json(text: str) -> None:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return
    if all(isinstance(item, Mapping) and "role" in item for item in given):
        raise RecordError("the prompt is the JSON text of messages; a card's transform parse_json makes messages of it")


def _images(value: Any, root: Path | None, limits: ImageLimits | None) -> list[StoredImage]:
    if value is None:
        return []
    single = not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray)
    images = []
    room = (limits or ImageLimits()).room()
    for number, item in enumerate([value] if single else item_list(value, "images")):
        try:
            images.append(load_image(item, root, limits, room))
        except ImageError as error:
            file = item.get("path") if isinstance(item, Mapping) else item
            named = isinstance(file, str | Path) and str(file)[:SHOWN] not in str(error)
            raise ImageError(f"image {number}{f' ({shown(str(file))})' if named else ''}: {error}") from error
    return images


def _sizes(value: Any, images: Sequence[StoredImage]) -> list[tuple[float, ...]]:
    """The sizes that the images were annotated in, which must be their own; as many as are given."""
    sizes = []
    given = [] if value is None else item_list(value, "image_sizes")
    for number, (size, stored) in enumerate(zip(given, images, strict=False)):
        expected = tuple(number_list(size, 2, f"image_sizes[{number}]"))
        if expected != stored.size:
            raise RecordError(
                f"image {number} is {stored.size[0]} x {stored.size[1]}, but was annotated as "
                f"{expected[0]:g} x {expected[1]:g}: its boxes would be misplaced"
            )
        sizes.append(expected)
    return sizes


def _check_turned(images: Sequence[StoredImage], sizes: Sequence[tuple[float, ...]], boxed: Collection[int]) -> None:
    """Refuse boxes in a picture that EXIF data turns, unless the annotated size shows that they are of the turned one.

    Some tools annotate the picture as it is stored in its file, others as it is seen; few say which.
    """
    for number in sorted(boxed):
        orientation, (width, height) = images[number].orientation, images[number].size
        shown = number < len(sizes) and orientation >= 5 and width != height
        if orientation != 1 and not shown:
            raise RecordError(
                f"image {number} is turned by its EXIF orientation {orientation}, and nothing shows whether its boxes "
                "are of the picture before or after: turn the file itself, with its boxes"
            )


def _tests(value: Any) -> str:
    """The answer of a programming problem: its tests."""
    text = required_text(value, "answer", MAX_JSON)
    parse_tests(text)
    return text


def _box_list(value: Any) -> str:
    """The answer of a grounding problem: its boxes, in thousandths."""
    text = answer_text(value)
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


def message_texts(prompt: Sequence[Message]) -> str:
    """All text of a prompt, for checks that compare annotations with it."""
    return "\n".join(message["content"] for message in prompt)


def user_text(prompt: Sequence[Message]) -> str:
    """What the user says: the text that makes two records the same question."""
    return "\n".join(message["content"].replace(IMAGE_MARKER, " ") for message in prompt if message["role"] == "user")
