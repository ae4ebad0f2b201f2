"""Checks of single values in a raw record: each gives the value in its final type, or raises RecordError.

What was put right and not refused is a `Finding`.
"""

from __future__ import annotations

import numbers
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dopd_vl.common.errors import RecordError, nearest
from privileged.rendering.boxes import MAX_COORDINATE
from privileged.schema import IMAGE_MARKER, ROLES, Message

MAX_TEXT = 200_000
MAX_ID = 256
MAX_ITEMS = 1000
"""Characters of one text, characters of an id, and messages, images, hints or boxes of one record."""

MAX_JSON = 4_000_000
"""Characters of a text that is read as JSON."""

CONTROL_TOKEN = re.compile(
    r"<\|(?:im_start|im_end|endoftext|repo_name|file_sep|(?:vision|image|video|object_ref|box|quad|fim|audio)_?\w*)\|>"
    r"|</?(?:think|tool_call|tool_response)>"
)
"""What Qwen3's and Qwen3-VL's tokenizers read as a token of its own (ids 151643 to 151668). Inside a text they would
forge turns, images, thinking or what a tool said, once it is tokenised. Thinking is refused like the others: in a hint
that the teacher is shown it would open the teacher's own. The transform after_thinking keeps what follows it."""


IMAGE_MARKS = re.compile(
    r"<(?:image|img|video|audio)(?:[ _-]?(?:here|placeholder|token|\d{1,4}))? ?/?>"
    r"|\[(?:image|img|video|audio)(?:[ _-]?\d{1,4})?\]",
    re.IGNORECASE,
)
"""Where an image, film or sound stands in a text, as sets write it: <image>, <image 2>, <image_2>, [IMG], <video>."""

_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and signs for Unicode of which nothing is seen: the Hangul fillers and the empty Braille cell."""


@dataclass(frozen=True)
class Finding:
    """Something that the audit noticed about a record: one of `audit.SEVERITIES`, and what exactly."""

    code: str
    detail: str


def is_visible(text: str) -> bool:
    """Whether a reader sees anything: not of spaces, controls, zero-width signs or accents without a letter alone.

    >>> is_visible("7"), is_visible("\u200b \ufeff")
    (True, False)
    """
    return any(unicodedata.category(char)[0] not in "CMZ" and char not in _BLANK_LETTERS for char in text)


def image_number(mark: str) -> int | None:
    """The number in a mark of `IMAGE_MARKS` for an image.

    >>> image_number("<image_2>"), image_number("[IMG]"), image_number("<video 2>")
    (2, None, None)
    """
    digits = re.search(r"\d+", mark)
    return int(digits.group()) if digits and mark[1:4].casefold() in ("ima", "img") else None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: a mapping of which no key stands twice, where Python would keep the last."""
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise RecordError(f"the key {key!r:.80} stands twice")
        keys[key] = value
    return keys


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
    usable = isinstance(item, numbers.Real) and not isinstance(item, bool)
    # The comparison is false for NaN too, and right for integers too large for a float.
    if usable and -MAX_COORDINATE <= item <= MAX_COORDINATE:
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


def required_text(value: Any, where: str, limit: int = MAX_TEXT) -> str:
    if value is None:
        raise RecordError(f"{where} is missing")
    if not isinstance(value, str):
        raise RecordError(f"{where} must be text, not {type(value).__name__}")
    if len(value) > limit:
        raise RecordError(f"{where} has {len(value)} characters, more than the {limit} allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{where} holds a lone surrogate at character {error.start}: it is no valid text") from error
    if token := CONTROL_TOKEN.search(value):
        way_on = "; a card's transform after_thinking keeps what follows it" if "think" in token.group() else ""
        raise RecordError(f"{where} holds the control token {token.group()}{way_on}")
    return str(value)


def optional_text(value: Any, where: str) -> str | None:
    text = "" if value is None else required_text(value, where).strip()
    return text if is_visible(text) else None


def shown_text(value: Any, where: str) -> str | None:
    """Optional text that variants write into the prompt, where an image marker would be read as one more image."""
    text = optional_text(value, where)
    return None if text is None else without_marker(text, where)


def without_marker(text: str, where: str) -> str:
    if IMAGE_MARKER in text:
        raise RecordError(f"{where} holds the image marker {IMAGE_MARKER}")
    return text


def chat_message(item: Any, number: int) -> Message:
    where = f"prompt[{number}]"
    if not isinstance(item, Mapping):
        raise RecordError(f"{where} must be a mapping with role and content, not {type(item).__name__}")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RecordError(f"{where}.role is {reprlib.repr(role)}; known: {', '.join(ROLES)}")
    if role == "system" and number > 0:
        raise RecordError(f"{where} is a system message; only the first may be one")
    content = item.get("content")
    if not isinstance(content, str):
        content = "".join(_part(part, where) for part in item_list(content, f"{where}.content"))
    return Message(role=role, content=required_text(content, f"{where}.content"))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return required_text(part.get("text"), f"{where}.content")
    if kind == "image":
        return IMAGE_MARKER
    raise RecordError(f"{where}.content holds a part that is neither text nor image")
