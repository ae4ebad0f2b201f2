"""What the audit finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that the audit noticed about a record: one of `audit.SEVERITIES`, and what exactly."""

    code: str
    detail: str
