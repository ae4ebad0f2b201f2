"""`dopd-vl train`: distil a teacher into a student."""

import shlex
from collections.abc import Sequence

from dopd_vl.common.configuration import read_config
from dopd_vl.common.processes import is_first_process
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.train_config import TrainConfig


def main(argv: Sequence[str]) -> int:
    config = read_config(TrainConfig, argv, "dopd-vl train")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.training.run import run_training  # torch and TRL: only once the configuration is sound

    quiet_libraries()
    console = Terminal(quiet=not is_first_process())
    result = run_training(config, console=console)
    scores = [row["eval_accuracy"] for row in result.metrics if "eval_accuracy" in row]
    if scores:
        tell(console, f"held-out accuracy {scores[0]:.1%} before, {scores[-1]:.1%} after")
    tell(console, f"student: {result.student}")
    tell(console, f"run folder: {result.folder}")
    tell(console, f"report: dopd-vl report {shlex.quote(str(result.folder))}")
    return 0
