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
    evaluations = [row for row in result.metrics if any(name.startswith("eval_") for name in row)]
    if evaluations:
        first, last = (row.get("eval_accuracy") for row in (evaluations[0], evaluations[-1]))
        if first is None or last is None:
            best = "of its last step" if result.best_by is None else f"with the highest {result.best_by}"
            told = f"held-out accuracy: not scored; best/ is the student {best}"
        else:
            told = f"held-out accuracy {first:.1%} before, {last:.1%} after"
        tell(console, told)
    tell(console, f"student: {result.student}")
    tell(console, f"run folder: {result.folder}")
    tell(console, f"report: dopd-vl report {shlex.quote(str(result.folder))}")
    return 0
