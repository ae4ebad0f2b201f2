"""The tables of docs/experiments.md, from the finished studies of the nano worlds.

    python benchmarks/experiments.py --studies runs/studies

Each `<!-- WORLD/STUDY: begin -->` of the page is followed by what `dopd-vl study --config study/worlds/WORLD --config
study/STUDY` wrote into results.md; the numbers are kept in benchmarks/results/experiments.json. Draws
docs/experiments-steps.svg.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from stability import put_between_markers

from dopd_vl.reporting.figures import PALETTE

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "experiments.md"
WORLDS = ("nano-text", "nano-vision")
KEPT = ("data_sets", "cells", "references", "paper")


def collect(studies: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers and the table of each study that has any, by WORLD/STUDY."""
    numbers, tables = {}, {}
    for world in WORLDS:
        for file in sorted((studies / world).glob("*/results.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            if any(cell["scores"] for cell in result["cells"]):
                name = f"{world}/{file.parent.name}"
                numbers[name] = {key: result[key] for key in KEPT}
                tables[name] = file.with_name("results.md").read_text(encoding="utf-8")
    return numbers, tables


def draw_steps(file: Path, result: dict[str, Any]) -> None:
    """Accuracy, plain and privileged, and entropy of each cell over the steps: mean and spread over its seeds."""
    from matplotlib import pyplot

    panels = {
        "eval_accuracy": "accuracy",
        "eval_hints_accuracy": "accuracy with hints",
        "eval_entropy": "entropy (nats)",
    }
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for row in result["curves"]:
        lines[row["metric"], row["cell"]].append((row["step"], row["mean"], row["spread"]))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "experiments", "font.size": 9}):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(8, 2.6), layout="constrained")
        for axis, (metric, title) in zip(axes, panels.items(), strict=True):
            for number, cell in enumerate(cell["name"] for cell in result["cells"]):
                steps, means, spreads = zip(*lines[metric, cell], strict=True)
                axis.plot(steps, means, color=PALETTE[number], label=cell, linewidth=1.4)
                low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
                high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
                axis.fill_between(steps, low, high, color=PALETTE[number], alpha=0.15, linewidth=0)
            axis.set(xlabel="step", ylabel=title, ylim=(0, None))
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False, fontsize=7)
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "experiments.json")
    args = parser.parse_args()
    numbers, tables = collect(args.studies)
    args.results.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    along = args.studies / "nano-text" / "stability" / "results.json"
    if along.exists():
        draw_steps(ROOT / "docs" / "experiments-steps.svg", json.loads(along.read_text(encoding="utf-8")))
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        if f"<!-- {name}: begin -->" not in page and "/map-" not in name:  # those are docs/stability.md's
            print(f"{name}: no place in {PAGE.name}")
        page = put_between_markers(page, name, table)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
