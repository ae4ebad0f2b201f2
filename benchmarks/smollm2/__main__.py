"""The pretrained world: its data sets and its pair of models, made from packages.

python -m benchmarks.smollm2 data
python -m benchmarks.smollm2 models
python -m benchmarks.smollm2 dose
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import run

HOMES = {
    "data": ("benchmarks.smollm2.data", "make_data"),
    "models": ("benchmarks.smollm2.models", "make_models"),
    "dose": ("benchmarks.smollm2.dose", "measure_doses"),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.smollm2", description="The pretrained world.")
    commands = top.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="make the data sets, in runs/real/smollm2 and runs/data/smollm2")
    models = commands.add_parser("models", help="make and score runs/models/smollm2-guide and -learner")
    dose = commands.add_parser("dose", help="measure what each variant gives away, and what the pair does with it")
    dose.add_argument("--output", type=Path, help="a JSON file; default benchmarks/results/smollm2-dose.json")
    for command in (data, models):
        command.add_argument("--seed", type=_natural, help="default 0")
    models.add_argument("--steps", type=_natural, help="so many updates for each model, for a quick trial")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    return run(parser(), HOMES, argv)


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
