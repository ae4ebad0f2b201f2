"""The `dopd-vl` command. Each command's module is imported when it is called for, so that help answers at once."""

import importlib
import os
import sys
from collections.abc import Sequence

from dopd_vl.common.visible import one_visible_line, print_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a mistake that the user can mend, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print_line(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from dopd_vl.common.version import __version__

        print_line(f"dopd-vl {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        from dopd_vl.common.errors import nearest

        print_line(f"error: unknown command {name!r}, {nearest(name, COMMANDS)}", error=True)
        return 2
    # Training reports nothing to anyone unless the user asks.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from dopd_vl.common.errors import UserError

    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(rest))
    except UserError as error:
        print_line(f"error: {one_visible_line(str(error))}", error=True)
        return 2
    except KeyboardInterrupt:
        print_line(f"\nstopped; {_again(name)} to go on", error=True)
        return 130
    except Exception as error:
        from dopd_vl.common.files import told_of_disk

        told = told_of_disk(error)
        if told is None:
            raise
        print_line(f"error: {told}; what is whole stays, {_again(name)} when it can be used", error=True)
        return 2


COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("dopd_vl.commands.prepare", "turn source records into a checked privileged data set"),
    "train": ("dopd_vl.commands.train", "distil a teacher into a student"),
    "evaluate": ("dopd_vl.commands.evaluate", "score a model on a privileged data set, or on the paper's benchmarks"),
    "export": ("dopd_vl.commands.export", "a student as one model for others to use: adapters merged, in bf16"),
    "study": ("dopd_vl.commands.study", "run a grid of methods, variants, settings and seeds, and compare"),
    "quickstart": ("dopd_vl.commands.quickstart", "the whole job on a laptop, in minutes"),
    "report": ("dopd_vl.commands.report", "runs as one HTML page: curves and a token inspector"),
    "configs": ("dopd_vl.commands.configs", "the configurations that ship, by the name that --config takes"),
    "plan": ("dopd_vl.commands.plan", "whether a run fits in memory, and what it takes, before it starts"),
}
"""name -> (the module whose `main(argv)` is the command, what it does)"""


def _again(command: str) -> str:
    """What goes on with a command that was stopped."""
    return f"run the same command again{' with --resume true' if command == 'train' else ''}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dopd-vl COMMAND [--config FILE] [--KEY VALUE ...] [--print_config]",
            "",
            "On-policy distillation of Qwen3 and Qwen3-VL students with privileged information (arXiv 2606.30626).",
            "",
            *lines,
            "",
            "dopd-vl COMMAND --help lists a command's keys.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
