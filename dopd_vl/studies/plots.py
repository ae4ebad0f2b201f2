"""A study's figures: each quantity over steps, mean and spread over seeds, a line a cell."""

from pathlib import Path
from typing import Any

from dopd_vl.reporting.figures import Line, draw_figure
from dopd_vl.reporting.quantities import file_stem, is_share, title_of
from dopd_vl.studies.config import StudyConfig, study_folder
from dopd_vl.studies.results import SHARES, StudyResult

DRAWN = ("eval_accuracy", "eval_entropy", "gap/mean")


def draw(config: StudyConfig, result: StudyResult) -> list[Path]:
    """`figures/QUANTITY.svg` and `.png` for accuracy, entropy, gap and every regime's share that the runs logged."""
    folder = study_folder(config) / "figures"
    files = []
    for name in sorted({row["metric"] for row in result.curves if _drawn(row["metric"])}):
        folder.mkdir(exist_ok=True)
        lines = []
        for number, cell in enumerate(dict.fromkeys(row["cell"] for row in result.curves)):
            rows = _over_stages([row for row in result.curves if row["cell"] == cell and row["metric"] == name])
            if rows:
                lines.append(_line(cell, number, rows))
        files += draw_figure(lines, title_of(name), folder / file_stem(name), is_share(name))
    return files


def _line(cell: str, number: int, rows: list[dict[str, Any]]) -> Line:
    means = [row["mean"] for row in rows]
    spreads = [row["spread"] or 0.0 for row in rows]
    return Line(
        cell,
        number,
        [row["step"] for row in rows],
        means,
        low=[m - s for m, s in zip(means, spreads, strict=True)],
        high=[m + s for m, s in zip(means, spreads, strict=True)],
    )


def _drawn(metric: str) -> bool:
    is_accuracy = metric.startswith("eval_") and metric.endswith("_accuracy")
    return metric in DRAWN or is_accuracy or metric.startswith(SHARES)


def _over_stages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps counted on from stage to stage."""
    moved, before = [], 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        some = [row for row in rows if row["stage"] == stage]
        moved += [{**row, "step": row["step"] + before} for row in some]
        before += max(row["step"] for row in some)
    return moved
