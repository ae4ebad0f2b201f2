"""`dopd-vl prepare`: turn source records into a checked privileged data set."""

from collections.abc import Sequence

from rich.console import Console

from dopd_vl.common.configuration import read_config
from privileged.prepare.config import PrepareConfig


def main(argv: Sequence[str]) -> int:
    config = read_config(PrepareConfig, argv, "dopd-vl prepare")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.nano.source import NanoSource
    from privileged.prepare.prepare import estimate_annotation, prepare

    quiet_libraries()
    if config.annotate is not None and config.annotate.dry_run:
        print("\n".join(estimate_annotation(config, {"nano": NanoSource}).lines()))
        return 0
    result = prepare(config, {"nano": NanoSource}, Console(stderr=True))
    done = "was complete already" if result.was_complete else "is complete"
    print(f"{result.output} {done}: {result.records} records, {result.rejected} set aside")
    return 0
