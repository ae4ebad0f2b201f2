"""The tables and figures of docs/stability.md, from the finished studies of the map.

    python benchmarks/stability.py --studies runs/studies --causes runs/causes --write

Reads what `dopd-vl study --config study/map/WORLD-world --config study/map/QUESTION` left, and the gradients that
`python benchmarks/regime_gradients.py` measured, of the nano worlds and of the pretrained one. Draws
docs/stability-*.svg, and with `--write` puts the tables between the page's markers.
"""

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stability_figures import REGIMES, SMOOTHED, draw

from dopd_vl.common.run_layout import checkpoint_step

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "stability.md"
DRAWN = ("rollout_accuracy", "eval_accuracy", "eval_privileged_accuracy", "eval_entropy", *REGIMES)


def cell_row(cell: dict[str, Any], curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the page tells of a cell. Shares 0 to 1, entropy in nats a response token."""
    scores = next(iter(cell["scores"].values()))
    privileged = next((name for name in scores if name.startswith("accuracy/")), None)
    shares = [row for row in curves if row["cell"] == cell["name"] and row["metric"] == "token_share/HS"]
    return {
        "cell": cell["name"],
        "seeds": len(cell["seeds"]),
        "accuracy": scores["accuracy"]["mean"],
        "spread": scores["accuracy"]["spread"],
        "privileged": scores[privileged]["mean"] if privileged else None,
        "entropy": scores["entropy"]["mean"],
        "calibration_error": scores.get("calibration_error"),
        "recovered": cell["gap_recovered"]["mean"] if cell["gap_recovered"] else None,
        "recovered_interval": cell["gap_recovered"]["interval"] if cell["gap_recovered"] else None,
        "difference": cell["against_baseline"],
        "p_holm": cell["holm_p"],
        "HS": [mean_of(shares[:SMOOTHED]), mean_of(shares[-SMOOTHED:])] if shares else None,
    }


def mean_of(rows: Iterable[dict[str, Any]]) -> float:
    return statistics.mean(row["mean"] for row in rows)


def collect(studies: Path) -> dict[str, Any]:
    found = {}
    for file in sorted([*studies.glob("*/map-*/results.json"), *studies.glob("nano-*/head-to-head/results.json")]):
        result = json.loads(file.read_text())
        rows = [cell_row(cell, result["curves"]) for cell in result["cells"] if cell["scores"]]
        if rows:
            name = f"{file.parent.parent.name.removeprefix('map-')}/{file.parent.name.removeprefix('map-')}"
            references = {
                Path(model).name: next(iter(scores.values())) for model, scores in result["references"].items()
            }
            found[name] = {"rows": rows, "references": references, "curves": keep_curves(result["curves"])}
    return found


def keep_curves(curves: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """metric -> cell -> [step, mean] pairs, of what is drawn."""
    kept: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in curves:
        name = row["metric"].removeprefix("token_share/")
        if name != "eval_accuracy" and name.startswith("eval_") and name.endswith("_accuracy"):
            name = "eval_privileged_accuracy"
        if name in DRAWN:
            kept[name][row["cell"]].append([row["step"], round(row["mean"], 4)])
    return kept


def percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def as_table(study: dict[str, Any]) -> str:
    columns = [
        "seeds",
        "plain",
        "privileged",
        "entropy",
        "gap recovered",
        "less baseline (95 %)",
        "HS share, first to last",
    ]
    calibrated = any(row["calibration_error"] for row in study["rows"])
    if calibrated:
        columns.insert(3, "calibration error")
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row in study["rows"]:
        difference = row["difference"]
        against = ""
        if difference:
            against = f"{100 * difference['difference']:+.1f}"
            if difference["interval"]:
                low, high = difference["interval"]
                against += f" ({100 * low:+.1f} to {100 * high:+.1f})"
        share = "" if row["HS"] is None else f"{100 * row['HS'][0]:.0f} to {100 * row['HS'][1]:.0f}"
        cells = [
            row["cell"],
            str(row["seeds"]),
            percent(row["accuracy"], row["spread"]),
            percent(row["privileged"]),
            f"{row['entropy']:.2f}",
            percent(row["recovered"]),
            against,
            share,
        ]
        if calibrated:
            error = row["calibration_error"]
            cells.insert(4, f"{error['mean']:.2f} ± {error['spread']:.2f}" if error else "")
        lines.append(f"| {' | '.join(cells)} |")
    told = ", ".join(f"{name} {percent(value)}" for name, value in study["references"].items())
    return "\n".join(lines) + f"\n\nBefore, and the teachers, plain: {told}.\n"


def gradients(causes: Path) -> dict[str, Any]:
    """step -> regime -> mean over runs of each quantity."""
    runs = [json.loads(file.read_text()) for file in sorted(causes.glob("*/gradients.json"))]
    means: dict[str, Any] = {}
    for position in range(len(runs[0]) if runs else 0):
        rows = [run[position] for run in runs]
        step = max(0, checkpoint_step(Path(rows[0]["student"])))
        means[str(step)] = {
            "runs": len(rows),
            "loss": {k: statistics.mean(r["supervised_loss"][k] for r in rows) for k in ("plain", "privileged")},
            "regimes": {
                regime: {k: statistics.mean(r["regimes"][regime][k] for r in rows) for k in rows[0]["regimes"][regime]}
                for regime in (*REGIMES, "all")
            },
        }
    return means


def gradient_table(means: dict[str, Any]) -> str:
    lines = [
        "| step | loss of the right answer, plain / privileged | " + " | ".join((*REGIMES, "all")) + " |",
        "|---:|---:|" + "---:|" * 5,
    ]
    for step, row in means.items():
        cells = [step, f"{row['loss']['plain']:.2f} / {row['loss']['privileged']:.2f}"]
        for regime in (*REGIMES, "all"):
            found = row["regimes"][regime]
            cells.append(f"{found['cosine_plain']:+.2f} / {found['cosine_privileged']:+.2f} ({found['norm']:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def put_between_markers(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}{end}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    parser.add_argument("--causes", type=Path, default=Path("runs/causes"))
    parser.add_argument("--pretrained-causes", type=Path, default=Path("runs/causes-smollm2"))
    parser.add_argument("--write", action="store_true", help="put the tables into docs/stability.md")
    args = parser.parse_args()
    studies, means = collect(args.studies), gradients(args.causes)
    draw(studies, means, ROOT / "docs")
    tables = {name: as_table(study) for name, study in studies.items()} | {"gradients": gradient_table(means)}
    if pretrained := gradients(args.pretrained_causes):
        tables["smollm2/gradients"] = gradient_table(pretrained)
    for name, table in tables.items():
        print(f"## {name}\n\n{table}")
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        for name, table in tables.items():
            page = put_between_markers(page, name, table)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
