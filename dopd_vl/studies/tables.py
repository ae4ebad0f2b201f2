"""A study's result as a table for readers."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dopd_vl.common.files import write_atomically, write_json
from dopd_vl.studies.config import StudyConfig, study_folder
from dopd_vl.studies.results import CellResult, StudyResult
from dopd_vl.studies.statistics import Summary

NOT_SCORED = "not scored"
"""Where no response has a verdict."""


def write(config: StudyConfig, result: StudyResult) -> list[Path]:
    """results.json, results.md, results.csv and curves.csv in the study's folder."""
    folder = study_folder(config)
    write_json(folder / "results.json", json.loads(json.dumps(asdict(result))))
    write_atomically(folder / "results.md", as_markdown(config, result))
    write_atomically(folder / "results.csv", _as_csv(_flat_rows(result)))
    write_atomically(folder / "curves.csv", _as_csv(result.curves))
    return [folder / name for name in ("results.md", "results.json", "results.csv", "curves.csv")]


def as_markdown(config: StudyConfig, result: StudyResult) -> str:
    """The result table: per cent, mean ± standard deviation over seeds."""
    extra = [f"accuracy/{variant}" for variant in config.score_variants[1:]]
    head = ["cell", "seeds", *result.data_sets, *(f"with {name.removeprefix('accuracy/')}" for name in extra)]
    head += ["entropy (nats)", "gap recovered"]
    if config.baseline is not None:
        head += [f"less {config.baseline} (95 %)", "p", "p (Holm)"]
    head += [f"forgetting {data}" for data in result.data_sets] if len(config.stages) > 1 else []
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    main = result.data_sets[0]
    for cell in result.cells:
        if not cell.scores:
            lines.append(_line([cell.name, "0", *["not run yet"], *[""] * (len(head) - 3)]))
            continue
        row = [cell.name, str(len(cell.seeds))]
        row += [_percent(cell.scores[data].get("accuracy")) for data in result.data_sets]
        row += [_percent(cell.scores[main].get(name)) for name in extra]
        row += [_number(cell.scores[main].get("entropy")), _percent(cell.gap_recovered) if cell.gap_recovered else ""]
        if config.baseline is not None:
            row += _compared(cell)
        if len(config.stages) > 1:
            row += [_percent(cell.forgetting.get(data)) for data in result.data_sets]
        lines.append(_line(row))
    for model, scores in result.references.items():
        row = [f"*{model}*", "", *(_share(scores[data]) if data in scores else "" for data in result.data_sets)]
        lines.append(_line([*row, *[""] * (len(head) - len(row))]))
    text = "\n".join(lines) + "\n"
    if result.by_illusion:
        text += "\n" + _illusion_markdown(result.by_illusion)
    if result.paper is not None:
        text += "\n" + _paper_markdown(result.paper)
    return text


def _illusion_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Kept rollouts by how much the privileged part of their example gives the answer away."""
    lines = [_line(["cell", "illusion score (nats)", "rollouts", "right (%)", "advantage gap"]), "|---|" + "---:|" * 4]
    for row in rows:
        right = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        gap = "" if row["gap"] is None else f"{row['gap']:+.2f}"
        lines.append(_line([row["cell"], f"{row['nats']} to {row['nats'] + 1}", str(row["rollouts"]), right, gap]))
    return "\n".join(lines) + "\n"


def _paper_markdown(paper: Mapping[str, Any]) -> str:
    lines = [_line(["cell", "ours", f"paper, {paper['column']}"]), "|---|---:|---:|"]
    lines += [_line([name, f"{100 * ours:.1f}", f"{theirs:.1f}"]) for name, ours, theirs in paper["pairs"]]
    if paper["spearman"] is None:
        return "\n".join(lines) + "\n"
    return "\n".join(lines) + f"\n\nRank correlation (Spearman) {paper['spearman']:+.2f}, p = {paper['p']:.2f}.\n"


def _compared(cell: CellResult) -> list[str]:
    comparison = cell.against_baseline
    if comparison is None:
        return ["", "", ""]
    shown = f"{100 * comparison.difference:+.1f}"
    if comparison.interval is not None:
        low, high = comparison.interval
        shown += f" ({100 * low:+.1f} to {100 * high:+.1f})"
    p = "" if comparison.p is None else f"{comparison.p:.3f}"
    return [shown, p, "" if cell.holm_p is None else f"{cell.holm_p:.3f}"]


def _share(share: float | None) -> str:
    return NOT_SCORED if share is None else f"{100 * share:.1f}"


def _percent(summary: Summary | None) -> str:
    if summary is None:
        return NOT_SCORED
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _number(summary: Summary | None) -> str:
    if summary is None:
        return NOT_SCORED
    return f"{summary.mean:.2f}" + ("" if summary.spread is None else f" ± {summary.spread:.2f}")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _flat_rows(result: StudyResult) -> list[dict[str, Any]]:
    """One row a cell, data set and quantity."""
    return [
        {
            "cell": cell.name,
            "data": data,
            "metric": metric,
            "mean": summary.mean,
            "spread": summary.spread,
            **{f"seed {seed}": value for seed, value in zip(cell.seeds, summary.values, strict=True)},
        }
        for cell in result.cells
        for data, metrics in cell.scores.items()
        for metric, summary in metrics.items()
    ]


def _as_csv(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
