"""Our scores beside the paper's rows, and the share of the gap between student and teacher that was recovered."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation.estimates import gap_recovered
from dopd_vl.harnesses.table import PaperTable

BASE, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Reference:
    """The scores of the untrained student, or of the teacher."""

    scores: dict[str, float]
    """benchmark -> per cent"""
    origin: str
    """the paper, or the file that holds our own measurement"""


def reference(paper: PaperTable, row: str, file: str | None) -> Reference:
    """Our own measurement where there is one, else the paper's printed row.

    Raises:
        UserError: the file holds no scores of a whole run.
    """
    if file is None:
        return Reference(dict(zip(paper.benchmarks, paper.rows[row], strict=True)), "the paper")
    return Reference(read_scores(Path(file), f"benchmarks.{'base' if row == BASE else row}"), file)


def read_scores(file: Path, key: str) -> dict[str, float]:
    """The whole scores of another run of a suite, per cent."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        scores = {name: float(result["score"]) for name, result in results.items() if result["limit"] is None}
    except OSError as error:
        raise UserError(f"{key}: cannot read {file} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{key}: {file} is not the scores.json of a suite") from error
    if not scores:
        raise UserError(f"{key}: {file} holds no score of a whole benchmark")
    return scores


def gaps(scores: Mapping[str, float], base: Reference, teacher: Reference) -> dict[str, float]:
    """Of each benchmark that all three have, and "average": of their averages over these benchmarks."""
    common = [name for name in scores if name in base.scores and name in teacher.scores]
    found = {name: gap_recovered(scores[name], base.scores[name], teacher.scores[name]) for name in common}
    if common:
        found["average"] = gap_recovered(
            *(_mean([row[name] for name in common]) for row in (scores, base.scores, teacher.scores))
        )
    return {name: gap for name, gap in found.items() if gap is not None}


def as_markdown(
    model: str,
    results: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    paper: PaperTable,
    base: Reference,
    teacher: Reference,
) -> str:
    """One table: the paper's rows, ours, and the gap recovered. Averages stand where every benchmark has a score."""
    shown = [name for name in paper.benchmarks if name in names]
    whole = {name: float(r["score"]) for name, r in results.items() if r["limit"] is None}
    lines = [_line(["", *shown, "average"]), "|---|" + "---:|" * (len(shown) + 1)]
    for row, scores in paper.rows.items():
        title = {BASE: f"{paper.student} (base)", TEACHER: f"{paper.teacher} (teacher)"}.get(row, row)
        values = dict(zip(paper.benchmarks, scores, strict=True))
        lines.append(_line([f"{title}, paper", *_cells(values, shown)]))
    for title, own in (("base", base), ("teacher", teacher)):
        if own.origin != "the paper":
            lines.append(_line([f"{title}, measured", *_cells(own.scores, shown)]))
    trial = {name: f"({r['score']:.1f})" for name, r in results.items() if r["limit"] is not None}
    ours = [trial.get(name, cell) for name, cell in zip([*shown, "average"], _cells(whole, shown), strict=True)]
    lines.append(_line([f"**{model}**", *ours]))
    recovered = gaps({name: whole[name] for name in shown if name in whole}, base, teacher)
    cells = [f"{recovered[name]:.0%}" if name in recovered else "" for name in shown]
    average = (
        f"{recovered['average']:.0%}" if "average" in recovered and len(whole.keys() & set(shown)) == len(shown) else ""
    )
    lines.append(_line(["gap recovered", *cells, average]))
    notes = [
        "Per cent. Gap recovered: (student - base) / (teacher - base); "
        f"base from {base.origin}, teacher from {teacher.origin}."
    ]
    if trial:
        notes.append("In brackets: some questions only, a trial of the pipeline.")
    return "\n".join([*lines, "", *notes]) + "\n"


def _cells(scores: Mapping[str, float], names: Sequence[str]) -> list[str]:
    cells = [f"{scores[name]:.1f}" if name in scores else "" for name in names]
    return [*cells, f"{_mean([scores[name] for name in names]):.1f}" if names and all(cells) else ""]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
