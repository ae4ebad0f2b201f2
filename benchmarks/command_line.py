"""Commands of `python -m benchmarks.WORLD`, each a function of a module of its own."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

from dopd_vl.common.errors import UserError, one_line


def run(parser: argparse.ArgumentParser, homes: Mapping[str, tuple[str, str]], argv: Sequence[str] | None) -> int:
    """Call the command's function with the options that were given; the exit status: 2 for what the user can mend.

    Args:
        homes: command -> its function, by module and name; torch takes seconds to import. Options are its arguments.
    """
    options = vars(parser.parse_args(argv))
    module, function = homes[options.pop("command")]
    given = {name: value for name, value in options.items() if value is not None}
    try:
        getattr(importlib.import_module(module), function)(**given)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
