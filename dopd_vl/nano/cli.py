"""`dopd-vl nano build`: train the CPU-size models again; `dopd-vl nano ladder`: students of chosen strength."""

import argparse
from collections.abc import Sequence

LADDERS = (
    "text",
    "text-even",
    "text-guide",
    "text-teacher",
    "text-small",
    "text-middle",
    "text-variants",
    "text-variants-guide",
    "vision",
    "vision-even",
    "vision-variants",
)
MODELS = ("vision-teacher", "vision-student", "text-teacher", "text-student")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="dopd-vl nano", description="The CPU-size world: its models.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build", help="train the nano teachers and students and save them as Hugging Face folders"
    )
    build.add_argument("--output", required=True, metavar="DIR", help="where the model folders go")
    build.add_argument("--family", choices=("all", "vision", "text"), default="all")
    build.add_argument("--model", choices=MODELS, help="only this model of the family")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--shrink", type=_positive, default=1, help="divide steps and rows by this, for a quick trial")
    build.add_argument("--scored", type=_positive, help="held-out records to measure the final scores on")
    ladder = commands.add_parser("ladder", help="train a nano student and save it at chosen held-out accuracies")
    ladder.add_argument("--output", required=True, metavar="DIR", help="where the model folders go")
    ladder.add_argument("--family", choices=LADDERS, required=True)
    ladder.add_argument("--levels", type=float, nargs="+", metavar="SHARE", help="accuracies, default 0.1 0.3 0.5 0.7")
    ladder.add_argument("--seed", type=int, default=0)
    shortcut = commands.add_parser(
        "shortcut", help="train a text teacher that the shown answer tempts to skip reasoning"
    )
    shortcut.add_argument("--output", required=True, metavar="DIR", help="where its folder goes")
    shortcut.add_argument("--seed", type=int, default=0)
    soften = commands.add_parser("soften", help="save a nano model with its logits divided by a temperature")
    soften.add_argument("--model", required=True, help="folder or nano:NAME")
    soften.add_argument("--temperature", type=float, required=True)
    soften.add_argument("--output", required=True, metavar="DIR", help="the new model's folder")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dopd-vl nano ...`; the exit status. A wrong argument exits with status 2, as argparse does."""
    arguments = parser().parse_args(argv)
    if arguments.command == "ladder":
        from dopd_vl.nano.ladder import LEVELS, build_ladder

        build_ladder(arguments.output, arguments.family, arguments.levels or LEVELS, arguments.seed)
        return 0
    if arguments.command == "soften":
        from dopd_vl.nano.soften import soften

        soften(arguments.model, arguments.temperature, arguments.output)
        return 0
    if arguments.command == "shortcut":
        from dopd_vl.nano.shortcut import build_shortcut_teacher

        build_shortcut_teacher(arguments.output, arguments.seed)
        return 0
    from dopd_vl.nano.build import SCORED, build  # here: torch takes seconds to import

    build(
        arguments.output,
        family=arguments.family,
        seed=arguments.seed,
        model=arguments.model,
        shrink=arguments.shrink,
        scored=arguments.scored or SCORED,
    )
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
