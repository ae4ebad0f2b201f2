"""What a model's reply must look like, part by part; boxes are read in `records.grounding`."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from dopd_vl.common.errors import RecordError
from privileged.records.fields import item_list
from privileged.records.grounding import json_of, reply_text

MAX_STEPS = 20
MAX_HINT = 2000
MAX_CAPTION = 8000


def hint_list(text: str) -> list[str]:
    """The steps of {"hints": ["...", ...]}, without the numbers that models put before them.

    >>> hint_list('{"hints": ["1. Find both digits.", "2. Add them."]}')
    ['Find both digits.', 'Add them.']
    """
    items = item_list(_under_key(json_of(text), "hints"), "hints")
    if not 1 <= len(items) <= MAX_STEPS:
        raise RecordError(f"the reply has {len(items)} hints, not 1 to {MAX_STEPS}")
    steps = [reply_text(item, f"hints[{number}]", MAX_HINT) for number, item in enumerate(items)]
    numbered = [re.sub(rf"^(?:Step\s*)?{number}\s*[.):]\s+", "", step) for number, step in enumerate(steps, start=1)]
    # Only when all are numbered and something is left: "2. Weltkrieg" may well begin a hint.
    changed = all(new and new != old for new, old in zip(numbered, steps, strict=True))
    return numbered if changed else steps


def one_hint(text: str) -> str:
    """The text of {"hint": "..."}."""
    return reply_text(_under_key(json_of(text), "hint"), "hint", MAX_HINT)


def caption(text: str) -> str:
    """The text of {"caption": "..."}."""
    return reply_text(_under_key(json_of(text), "caption"), "caption", MAX_CAPTION)


def verdict(text: str) -> tuple[bool, str]:
    """Whether a check found its part good, and the reason: {"verdict": "good" or "poor", "reason": "..."}."""
    value = json_of(text)
    if not isinstance(value, dict) or "verdict" not in value:
        raise RecordError(f"the verdict must be an object with verdict and reason, not {reprlib.repr(value)}")
    if value["verdict"] not in ("good", "poor"):
        raise RecordError(f"the verdict is {reprlib.repr(value['verdict'])}, neither good nor poor")
    return value["verdict"] == "good", reply_text(value.get("reason") or "no reason given", "reason", MAX_CAPTION)


def _under_key(value: Any, key: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise RecordError(f"the reply must be an object with the key {key!r}, not {reprlib.repr(value)}")
    return value[key]
