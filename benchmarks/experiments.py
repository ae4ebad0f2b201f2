"""The tables of docs/experiments.md, from the finished studies of the small worlds.

    python benchmarks/experiments.py --studies runs/studies

Each `<!-- WORLD/STUDY: begin -->` of the page is followed by what `dopd-vl study --config study/worlds/WORLD --config
study/STUDY` wrote into results.md; the world smollm2 has a study of its own, `comparison`. The study of stability's own
figures become docs/experiments-*.svg.
"""

import argparse
import json
import shutil
from pathlib import Path

from stability import put_between_markers

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "experiments.md"
WORLDS = ("nano-text", "nano-vision", "smollm2")
FIGURES = ("eval_accuracy", "eval_hints_accuracy", "eval_entropy")


def collect(studies: Path) -> dict[str, str]:
    """The table of each study that has numbers, by WORLD/STUDY."""
    tables = {}
    for world in WORLDS:
        for file in sorted((studies / world).glob("*/results.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            if any(cell["scores"] for cell in result["cells"]):
                tables[f"{world}/{file.parent.name}"] = file.with_name("results.md").read_text(encoding="utf-8")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    args = parser.parse_args()
    tables = collect(args.studies)
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
