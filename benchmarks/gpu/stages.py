"""The stages of a session in their order, and each in a process of its own."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import commands, losses, steps
from benchmarks.gpu.sizes import FULL, TINY, Sizes
from benchmarks.gpu.table import Rows, read_rows, write_report

FAILED, EARLY = "failed", "ended early"
Stage = Callable[[Sizes, Rows], None]
STAGES: dict[str, tuple[Stage, float]] = {
    "environment": (losses.environment, 30),
    "correctness": (losses.correctness, 50),
    "loss": (losses.loss, 120),
    "steps": (steps.steps, 180),
    "generation": (steps.generation, 60),
    "commands": (commands.commands, 100),
}
"""name -> what it does, and the seconds that it has"""


def session(names: list[str], folder: Path, tiny: bool, seconds: float) -> bool:
    """Run the stages, as long as there is time, and write the report as each ends; whether all is well.

    What a stage that fails, or takes too long, had found by then is kept, and the others are run.
    """
    # A process forked from one that has used CUDA cannot use it; a CPU's need not import everything anew.
    context: Any = multiprocessing.get_context("fork" if tiny else "spawn")
    end = time.monotonic() + seconds
    found = {}
    for name in names:
        file = folder / f"{name}.json"
        file.unlink(missing_ok=True)
        process = context.Process(target=_run, args=(name, file, tiny))
        process.start()
        # A busy CPU takes its time; what is tried out there is that all runs.
        process.join(max(0, min(STAGES[name][1] * (5 if tiny else 1), end - time.monotonic())))
        late = process.is_alive()
        if late:
            _kill_all(process)
        if late or process.exitcode:
            rows = Rows(file)
            rows.rows = read_rows(file)
            rows.add(EARLY, "its time was over" if late else f"exit code {process.exitcode}")
        found[name] = read_rows(file)
        write_report(folder, found)
    every = [row for rows in found.values() for row in rows]
    return not any(row.verdict == "FAIL" or row.what in (FAILED, EARLY) for row in every)


def _run(name: str, file: Path, tiny: bool) -> None:
    os.setsid()  # what it starts ends with it
    rows = Rows(file)
    try:
        STAGES[name][0](TINY if tiny else FULL, rows)
    except Exception as error:
        traceback.print_exc()
        rows.add(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _kill_all(process: Any) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not come to a group of its own
        process.kill()
    process.join()
