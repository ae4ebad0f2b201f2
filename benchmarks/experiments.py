"""The tables of docs/experiments.md, from the finished studies of the nano worlds.

    python benchmarks/experiments.py --studies runs/studies

Each `<!-- WORLD/STUDY: begin -->` of the page is followed by what `dopd-vl study --config study/worlds/WORLD --config
study/STUDY` wrote into results.md; the numbers are kept in benchmarks/results/experiments.json. The
study of stability's own figures become docs/experiments-*.svg.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from stability import put_between_markers

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "experiments.md"
WORLDS = ("nano-text", "nano-vision")
FIGURES = ("eval_accuracy", "eval_hints_accuracy", "eval_entropy")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "experiments.json")
    args = parser.parse_args()
    numbers, tables = collect(args.studies)
    args.results.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    for name in FIGURES:
        figure = args.studies / "nano-text" / "stability" / "figures" / f"{name}.svg"
        if figure.exists():
            shutil.copyfile(figure, ROOT / "docs" / f"experiments-{name}.svg")
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        if f"<!-- {name}: begin -->" not in page and "/map-" not in name:  # those are docs/stability.md's
            print(f"{name}: no place in {PAGE.name}")
        page = put_between_markers(page, name, table)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
