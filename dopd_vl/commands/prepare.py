"""`dopd-vl prepare`: turn source records into a checked privileged data set."""

from collections.abc import Sequence

from dopd_vl.common.configuration import read_config
from dopd_vl.common.terminal import Terminal
from dopd_vl.common.visible import print_line
from privileged.prepare.config import PrepareConfig


def main(argv: Sequence[str]) -> int:
    config = read_config(PrepareConfig, argv, "dopd-vl prepare")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.nano.source import NanoSource
    from privileged.prepare.prepare import estimate_annotation, prepare

    quiet_libraries()
    if config.annotate is not None and config.annotate.dry_run:
        print_line("\n".join(estimate_annotation(config, {"nano": NanoSource}).lines()))
        return 0
    result = prepare(config, {"nano": NanoSource}, Terminal(stderr=True))
    if result.was_complete:
        print_line(f"{result.output} was complete already")
    print_line("\n".join(result.lines()))
    return 0
