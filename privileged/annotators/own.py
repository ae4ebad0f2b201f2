"""The annotations that a source carries itself, gathered into the privileged struct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RecordError
from ..schema import PRIVILEGED_KEYS


class OwnAnnotator:
    """Takes what the record brings: its `privileged` mapping, and columns named `privileged.<part>` beside it.

    >>> raw = {"privileged": {"caption": "A cat."}, "privileged.hints": ["Look closely."]}
    >>> OwnAnnotator().annotate(raw)
    {'caption': 'A cat.', 'hints': ['Look closely.'], 'provenance': 'source'}
    """

    name = "own"

    def fingerprint(self) -> str:
        return "own-1"

    def annotate(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        carried = raw.get("privileged")
        if carried is not None and not isinstance(carried, Mapping):
            raise RecordError(f"privileged must be a mapping, not {type(carried).__name__}")
        parts = dict(carried or {})
        for key in PRIVILEGED_KEYS:
            value = raw.get(f"privileged.{key}")
            if value is not None:
                parts[key] = value
        if any(parts.values()) and not parts.get("provenance"):
            parts["provenance"] = "source"
        return parts
