"""Checks of single values in a raw record: each gives the value in its final type, or raises RecordError."""

from __future__ import annotations

import numbers
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .boxes import MAX_COORDINATE
from .errors import RecordError, nearest
from .schema import IMAGE_MARKER

MAX_TEXT = 200_000
MAX_ID = 256
MAX_ITEMS = 1000
"""Characters of one text, characters of an id, and messages, images, hints or boxes of one record."""

CONTROL_TOKEN = re.compile(
    r"<\|(?:im_start|im_end|endoftext|(?:vision|image|video|object_ref|box|quad|fim|audio)_?\w*)\|>"
)
"""Chat and vision control tokens. Inside a text they would forge turns or images once it is tokenised."""


def number_text(value: int | float) -> str:
    """A finite number as text. Python itself refuses, with a ValueError, to print integers of thousands of digits."""
    if not abs(value) < 1e300:  # true for NaN and infinity too
        raise RecordError("a number is not finite, or has over 300 digits")
    return str(value)


def number_list(value: Any, count: int, where: str) -> list[float]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != count:
        raise RecordError(f"{where} must be {count} numbers, not {reprlib.repr(value)}")
    return [_coordinate(item, where) for item in value]


def _coordinate(item: Any, where: str) -> float:
    if isinstance(item, numbers.Real) and not isinstance(item, bool):
        # False for NaN as well; an integer too large for a float compares rightly.
        if -MAX_COORDINATE <= item <= MAX_COORDINATE:  # type: ignore[operator]
            return float(item)
    raise RecordError(f"{where} holds {reprlib.repr(item)}, no usable number")


def item_list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        what = "is missing" if value is None else f"must be a list, not {type(value).__name__}"
        raise RecordError(f"{where} {what}")
    if len(value) > MAX_ITEMS:
        raise RecordError(f"{where} has {len(value)} entries, more than the {MAX_ITEMS} allowed")
    return value


def check_keys(value: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    for key in value:
        if key not in tuple(known):
            raise RecordError(f"{where} has the unknown key {reprlib.repr(key)}; {nearest(str(key)[:MAX_ID], known)}")


def required_text(value: Any, where: str) -> str:
    if value is None:
        raise RecordError(f"{where} is missing")
    if not isinstance(value, str):
        raise RecordError(f"{where} must be text, not {type(value).__name__}")
    if len(value) > MAX_TEXT:
        raise RecordError(f"{where} has {len(value)} characters, more than the {MAX_TEXT} allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{where} holds a lone surrogate at character {error.start}: it is no valid text") from error
    if token := CONTROL_TOKEN.search(value):
        raise RecordError(f"{where} holds the control token {token.group()}")
    return str(value)


def optional_text(value: Any, where: str) -> str | None:
    return None if value is None else required_text(value, where).strip() or None


def shown_text(value: Any, where: str) -> str | None:
    """Optional text that variants write into the prompt, where an image marker would be read as one more image."""
    text = optional_text(value, where)
    return None if text is None else without_marker(text, where)


def without_marker(text: str, where: str) -> str:
    if IMAGE_MARKER in text:
        raise RecordError(f"{where} holds the image marker {IMAGE_MARKER}")
    return text
