"""A study's result as a table for readers."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dopd_vl.common.files import write_atomically, write_json
from dopd_vl.common.visible import one_visible_line
from dopd_vl.studies.config import StudyConfig, short_names, shown, study_folder, with_values
from dopd_vl.studies.results import CellResult, StudyResult
from dopd_vl.studies.statistics import Summary

NOT_SCORED = "not scored"
"""Where no response has a verdict."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of a row names it."""

    head: list[str]
    rows: list[list[str]]
    references: list[list[str]] = field(default_factory=list)
    """rows of models that no run of the study made"""
    note: str = ""


def write(config: StudyConfig, result: StudyResult) -> list[Path]:
    """results.json, results.md, results.tex, results.csv and curves.csv in the study's folder."""
    folder = study_folder(config)
    tables = tables_of(config, result)
    write_json(folder / "results.json", json.loads(json.dumps(asdict(result))))
    write_atomically(folder / "results.md", "\n".join(map(as_markdown, tables)))
    write_atomically(folder / "results.tex", "% \\usepackage{booktabs}\n" + "\n".join(map(as_latex, tables)))
    write_atomically(folder / "results.csv", _as_csv(_flat_rows(result)))
    write_atomically(folder / "curves.csv", _as_csv(result.curves))
    return [folder / f"results.{form}" for form in ("md", "tex", "json", "csv")] + [folder / "curves.csv"]


def tables_of(config: StudyConfig, result: StudyResult) -> list[Table]:
    """The result, what was tried for it, the rollouts by illusion score and the paper's figures, if there are any."""
    tables = [_main_table(config, result)]
    if result.tried:
        tables.append(tuning_table(config, result.tried))
    if result.by_illusion:
        tables.append(_illusion_table(result.by_illusion))
    if result.paper is not None:
        tables.append(_paper_table(result.paper))
    return tables


def as_markdown(table: Table) -> str:
    """A table in Markdown; references in italics."""
    lines = [_line(table.head), "|---|" + "---:|" * (len(table.head) - 1), *map(_line, table.rows)]
    lines += [_line([f"*{name}*", *cells]) for name, *cells in table.references]
    return "\n".join(lines) + "\n" + (f"\n{table.note}\n" if table.note else "")


def as_latex(table: Table) -> str:
    """A `tabular` with the rules of booktabs; references in italics below a rule."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule", line(map(_in_latex, table.head))]
    lines += [r"\midrule", *(line(map(_in_latex, row)) for row in table.rows)]
    if table.references:
        lines.append(r"\midrule")
    lines += [line([rf"\emph{{{_in_latex(name)}}}", *map(_in_latex, cells)]) for name, *cells in table.references]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n" + (f"\n{_in_latex(table.note)}\n" if table.note else "")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _in_latex(text: str) -> str:
    r"""Any text on one line, for LaTeX; the sign of a number is a sign and no hyphen.

    >>> print(_in_latex("beta_weak 50 %: +1.2 (-0.3 to +2.7) ± 0.1"))
    beta\_weak 50 \%: $+$1.2 ($-$0.3 to $+$2.7) $\pm$ 0.1
    """
    escaped = "".join(_LATEX.get(sign, sign) for sign in one_visible_line(text))
    return re.sub(r"(?<![\w.-])([+-])(?=\d)", r"$\1$", escaped)


def _main_table(config: StudyConfig, result: StudyResult) -> Table:
    """Per cent, mean ± standard deviation over seeds."""
    extra = [f"accuracy/{variant}" for variant in config.score_variants[1:]]
    head = [
        "cell",
        *short_names(config.tune).values(),
        "seeds",
        *result.data_sets,
        *(f"with {name.removeprefix('accuracy/')}" for name in extra),
    ]
    head += ["entropy (nats)", "gap recovered"]
    if config.baseline is not None:
        head += [f"less {config.baseline} (95 %)", "p", "p (Holm)"]
    head += [f"forgetting {data}" for data in result.data_sets] if len(config.stages) > 1 else []
    table = Table(head, [])
    main = result.data_sets[0]
    for cell in result.cells:
        if not cell.scores:
            row = [cell.name, *[""] * len(config.tune), "0", "not run yet"]
            table.rows.append([*row, *[""] * (len(head) - len(row))])
            continue
        row = [cell.name, *map(shown, cell.tuned.values()), str(len(cell.seeds))]
        row += [_percent(cell.scores[data].get("accuracy")) for data in result.data_sets]
        row += [_percent(cell.scores[main].get(name)) for name in extra]
        row += [_number(cell.scores[main].get("entropy")), _percent(cell.gap_recovered) if cell.gap_recovered else ""]
        if config.baseline is not None:
            row += _compared(cell)
        if len(config.stages) > 1:
            row += [_percent(cell.forgetting.get(data)) for data in result.data_sets]
        table.rows.append(row)
    for model, scores in result.references.items():
        row = [
            model,
            *[""] * len(config.tune),
            "",
            *(_share(scores[data]) if data in scores else "" for data in result.data_sets),
        ]
        table.references.append([*row, *[""] * (len(head) - len(row))])
    return table


def tuning_table(config: StudyConfig, tried: Iterable[Mapping[str, Any]]) -> Table:
    """Accuracy on the data set of tuning, by what was tried, in per cent."""
    by_cell: dict[str, dict[str, str]] = {}
    for row in tried:
        accuracy = "not run yet" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        by_cell.setdefault(row["cell"], {})[with_values("", row["values"])] = accuracy + (" *" if row["chosen"] else "")
    names = list(dict.fromkeys(name for found in by_cell.values() for name in found))
    rows = [[cell, *(found.get(name, "") for name in names)] for cell, found in by_cell.items()]
    note = f"Tuned on {config.tune_on} with seed {config.seeds[0]}; * is what was chosen."
    return Table(["cell", *names], rows, note=note)


def _illusion_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Kept rollouts by how much the privileged part of their example gives the answer away."""
    table = Table(["cell", "illusion score (nats)", "rollouts", "right (%)", "advantage gap"], [])
    for row in rows:
        right = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        gap = "" if row["gap"] is None else f"{row['gap']:+.2f}"
        table.rows.append([row["cell"], f"{row['nats']} to {row['nats'] + 1}", str(row["rollouts"]), right, gap])
    return table


def _paper_table(paper: Mapping[str, Any]) -> Table:
    rows = [[name, f"{100 * ours:.1f}", f"{theirs:.1f}"] for name, ours, theirs in paper["pairs"]]
    found = paper["spearman"] is not None
    note = f"Rank correlation (Spearman) {paper['spearman']:+.2f}, p = {paper['p']:.2f}." if found else ""
    return Table(["cell", "ours", f"paper, {paper['column']}"], rows, note=note)


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
