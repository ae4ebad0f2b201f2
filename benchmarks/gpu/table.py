"""What a session found: rows that are on disk as soon as they are known, and the table of all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dopd_vl.common.files import write_atomically, write_json


@dataclass(frozen=True)
class Row:
    """One thing found."""

    what: str
    value: float | str
    unit: str = ""
    at_most: float | None = None
    """the goal, where there is one"""

    @property
    def verdict(self) -> str:
        if self.at_most is None:
            return ""
        return "pass" if isinstance(self.value, (int, float)) and self.value <= self.at_most else "FAIL"


class Rows:
    """The rows of one stage, written anew with each that is added."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[Row] = []

    def add(self, what: str, value: float | str, unit: str = "", at_most: float | None = None) -> None:
        self.rows.append(Row(what, value, unit, at_most))
        print(f"{self.file.stem}: {what}: {shown(value)} {unit} {self.rows[-1].verdict}", flush=True)
        write_json(self.file, [asdict(row) for row in self.rows])  # whole, whenever the stage is killed


def read_rows(file: Path) -> list[Row]:
    """Those of a stage that has begun; none of one that has not."""
    return [Row(**row) for row in json.loads(file.read_text())] if file.exists() else []


def shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def as_markdown(stages: Mapping[str, Sequence[Row]]) -> str:
    lines = ["| stage | what | found | goal | |", "|---|---|---|---|---|"]
    for stage, rows in stages.items():
        for row in rows:
            goal = "" if row.at_most is None else f"at most {shown(row.at_most)}"
            found = f"{shown(row.value)} {row.unit}".strip().replace("|", "/")
            lines.append(f"| {stage} | {row.what} | {found} | {goal} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def write_report(folder: Path, stages: Mapping[str, Sequence[Row]]) -> None:
    """`results.md` and `results.json` of the stages so far."""
    report: dict[str, Any] = {
        stage: [{**asdict(row), "verdict": row.verdict} for row in rows] for stage, rows in stages.items()
    }
    write_json(folder / "results.json", report)
    write_atomically(folder / "results.md", as_markdown(stages))
