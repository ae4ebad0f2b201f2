"""The models of the CPU-size world, trained again, and students of chosen strength for the studies of the map.

python -m benchmarks.nano build --output DIR
python -m benchmarks.nano ladder --output runs/ladder --family text
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.command_line import run

HOMES = {
    "build": ("benchmarks.nano.build", "build"),
    "ladder": ("benchmarks.nano.ladder", "build_ladder"),
    "shortcut": ("benchmarks.nano.shortcut", "build_shortcut_teacher"),
    "soften": ("benchmarks.nano.soften", "soften"),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.nano", description="The CPU-size world: its models.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="train the nano teachers and students and save them as Hugging Face folders"
    )
    build.add_argument("--output", required=True, metavar="DIR", help="where the model folders go")
    build.add_argument("--family", choices=("all", "vision", "text"))
    build.add_argument("--model", metavar="NAME", help="only this model of the family, e.g. text-student")
    build.add_argument("--seed", type=int)
    build.add_argument("--shrink", type=_positive, help="divide steps and rows by this, for a quick trial")
    build.add_argument("--scored", type=_positive, help="held-out records to measure the final scores on")
    ladder = commands.add_parser("ladder", help="train a nano student and save it at chosen held-out accuracies")
    ladder.add_argument("--output", required=True, metavar="DIR", help="where the model folders go")
    ladder.add_argument(
        "--family", dest="name", metavar="NAME", required=True, help="e.g. text, vision-even (docs/nano.md)"
    )
    ladder.add_argument("--levels", type=float, nargs="+", metavar="SHARE", help="accuracies, default 0.1 0.3 0.5 0.7")
    ladder.add_argument("--seed", type=int)
    shortcut = commands.add_parser(
        "shortcut", help="train a text teacher that the shown answer tempts to skip reasoning"
    )
    shortcut.add_argument("--output", required=True, metavar="DIR", help="where its folder goes")
    shortcut.add_argument("--seed", type=int)
    soften = commands.add_parser("soften", help="save a nano model with its logits divided by a temperature")
    soften.add_argument("--model", required=True, help="folder or nano:NAME")
    soften.add_argument("--temperature", type=float, required=True)
    soften.add_argument("--output", required=True, metavar="DIR", help="the new model's folder")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    return run(parser(), HOMES, argv)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
