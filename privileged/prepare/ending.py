"""How a preparation ends: what was kept, what was set aside or dropped and why, and the files to look at."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from privileged.dataset import DROPPED_FILE, REJECTED_FILE
from privileged.prepare.sample import PAGE_FILE

MAX_REASONS, MAX_SHOWN = 1000, 160
"""Different reasons that are counted, and characters that are shown of one."""

_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\d+")
"""What tells two records with one and the same trouble apart: names, and numbers."""


def ending(output: Path, audit: Mapping[str, Any]) -> list[str]:
    """Three lines on what became of the records, and one for each file that shows it.

    Args:
        audit: The content of audit.json.
    """
    counts = audit["counts"]
    numbers, total = counts["numbers"], audit["records"] + audit["rejected"]
    aside = _said(counts["stages"], "record", _reasons(output / REJECTED_FILE, lambda entry: entry["stage"]))
    held = f"{_number(numbers.get('images', 0), 'image')} and {_number(numbers.get('boxes', 0), 'box')}"
    lines = [f"{output}: kept {audit['records']} of {_number(total, 'record')}, with {held}", f"set aside: {aside}"]
    dropped = {name.replace(" dropped: ", " "): n for name, n in counts["annotated"].items() if " dropped: " in name}
    reasons = _reasons(output / DROPPED_FILE, lambda entry: f"{entry['part']} {entry['stage']}") if dropped else {}
    found = ", ".join(f"{count} {code}" for code, count in counts["findings"].items())
    lines.append(f"dropped: {_said(dropped, 'part', reasons)}; the audit counted: {found or 'nothing'}")
    files = {"a sample to look at": PAGE_FILE, "what was set aside": REJECTED_FILE, "what was dropped": DROPPED_FILE}
    return lines + [f"{what}: {output / name}" for what, name in files.items() if (output / name).is_file()]


def _said(counts: Mapping[str, int], unit: str, reasons: Mapping[str, str]) -> str:
    """
    >>> _said({"image": 1, "read": 2}, "record", {"image": "is truncated"})
    '3 records (2 read; 1 image, as in: is truncated)'
    """
    total = sum(counts.values())
    if not total:
        return f"no {unit}"
    why = {name: f", as in: {reasons[name]}" if name in reasons else "" for name in counts}
    groups = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{_number(total, unit)} ({'; '.join(f'{count} {name}{why[name]}' for name, count in groups)})"


def _number(count: int, unit: str) -> str:
    """
    >>> _number(1, "box"), _number(2, "box"), _number(0, "image")
    ('1 box', '2 boxes', '0 images')
    """
    return f"{count} {unit}{'' if count == 1 else 'es' if unit.endswith('x') else 's'}"


def _reasons(file: Path, group_of: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    """For each group of a file's entries the most frequent reason, whatever names and numbers it has."""
    counted: dict[str, Counter[str]] = {}
    first: dict[tuple[str, str], str] = {}
    for line in _lines(file):
        entry = json.loads(line)
        group, reason = group_of(entry), str(entry["reason"])
        kind = _PARTICULAR.sub("#", reason)[:MAX_SHOWN]
        if (group, kind) in first or len(first) < MAX_REASONS:
            first.setdefault((group, kind), reason)
            counted.setdefault(group, Counter())[kind] += 1
    return {group: _short(first[group, kinds.most_common(1)[0][0]]) for group, kinds in counted.items()}


def _short(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _lines(file: Path) -> Iterator[str]:
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            yield from lines
