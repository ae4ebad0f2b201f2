"""Annotators: what adds privileged information to a raw record.

Here is the interface of those that work at once, such as `own`, which takes over what a source already carries.
Models and detectors take their time, and may be asked for several parts: `ahead` runs them beside the preparation, see
docs/annotating.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Annotator(Protocol):
    """Gives the privileged part for a raw record (see `privileged.schema.Privileged`; parts may be left out)."""

    name: str

    def fingerprint(self) -> str:
        """Changes whenever the annotations would."""
        ...

    def annotate(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The privileged struct for one raw record. RecordError when the record cannot be annotated."""
        ...
