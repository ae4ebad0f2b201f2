"""The privileged part of a raw record: gathered from what the source carries, and checked.

Hints, captions and boxes get their final form, or the reason why they cannot.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dopd_vl.common.errors import RecordError
from privileged.records.fields import (
    MAX_JSON,
    Finding,
    check_keys,
    is_visible,
    item_list,
    number_list,
    number_text,
    optional_text,
    required_text,
    shown_text,
    without_marker,
)
from privileged.records.images import StoredImage
from privileged.rendering.boxes import clip, is_empty, to_pixels
from privileged.schema import BOX_KEYS, PRIVILEGED_KEYS, Box, Privileged, empty_privileged

CLIP_TOLERANCE = 1.0
"""Pixels by which a box may stick out of its image unmentioned: sources round."""

OWN_ANNOTATIONS = "own-2"
"""For fingerprints: changes whenever `own_annotations` gives something else."""


def own_annotations(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a record brings: its `privileged` mapping, and columns named `privileged.<part>` beside it.

    >>> own_annotations({"privileged": {"caption": "A cat."}, "privileged.hints": ["Look closely."]})
    {'caption': 'A cat.', 'hints': ['Look closely.'], 'provenance': 'source'}
    """
    carried = raw.get("privileged")
    parts = {} if carried is None else dict(_mapping(carried))
    columns = {key: raw.get(f"privileged.{key}") for key in PRIVILEGED_KEYS}
    parts |= {key: value for key, value in columns.items() if value is not None}
    if any(parts.values()) and not parts.get("provenance"):
        parts["provenance"] = "source"
    return parts


def privileged_part(value: Any, images: Sequence[StoredImage], box_format: str, findings: list[Finding]) -> Privileged:
    """The privileged struct of a record whose images are read; what was put right is added to `findings`.

    Raises:
        RecordError: with the reason.
    """
    if value is None:
        return empty_privileged()
    check_keys(_mapping(value), PRIVILEGED_KEYS, "privileged")
    answer = value.get("final_answer")
    return Privileged(
        final_answer=None if answer is None or answer == "" else answer_text(answer, "privileged.final_answer"),
        hints=_hints(value.get("hints"), "privileged.hints", findings),
        hints_executed=_hints(value.get("hints_executed"), "privileged.hints_executed", findings),
        hint_summary=shown_text(value.get("hint_summary"), "privileged.hint_summary"),
        caption=shown_text(value.get("caption"), "privileged.caption"),
        boxes=_boxes(value.get("boxes"), images, box_format, findings),
        wrong_hint=shown_text(value.get("wrong_hint"), "privileged.wrong_hint"),
        provenance=optional_text(value.get("provenance"), "privileged.provenance"),
    )


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise RecordError(f"privileged must be a mapping, not {type(value).__name__}")
    return value


def _hints(value: Any, where: str, findings: list[Finding]) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = _list_of_text(value.strip(), where, findings)
    hints = [shown_text(item, f"{where}[{number}]") for number, item in enumerate(item_list(value, where))]
    return [hint for hint in hints if hint is not None]


def _list_of_text(text: str, where: str, findings: list[Finding]) -> Any:
    """The list that a table could hold as text only, or the text as one hint."""
    if text[:1] + text[-1:] not in ("[]", "{}") or len(text) > MAX_JSON:
        return [text]
    try:
        hints = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text[1:2] not in ("'", '"'):
            return [text]
        raise RecordError(f"{where} is the text of a list, but no JSON: {reprlib.repr(text)}") from error
    findings.append(Finding("hints_from_json", f"{where} was JSON text"))
    return hints


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


def answer_text(value: Any, where: str = "answer") -> str:
    """A final answer, which may be given as a number."""
    if isinstance(value, bool):
        raise RecordError(f"{where} is {value}; a card's transform yes_no says what true and false mean")
    if isinstance(value, int | float):
        return number_text(value)
    text = required_text(value, where).strip()
    if not is_visible(text):
        raise RecordError(f"{where} is empty{', but for characters that are not seen' if text else ''}")
    return without_marker(text, where)
