"""The real command in a process of its own: the fork of a server that has the imports, which take seconds, behind it.

What is read from the environment at import (HF_HOME, ...) cannot be changed for such a process; a test of that starts
`python -m dopd_vl.cli` itself, as do those of start-up time and of what is imported.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "dopd_vl.cli",
        "dopd_vl.training.run",
        "dopd_vl.evaluation.run",
        "dopd_vl.planning.build",
        "dopd_vl.studies.run",
        "privileged.prepare.prepare",
        "trl.trainer.utils",
        "pyarrow.parquet",
        "supervision",
    ]
)


def dopd_vl(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`dopd-vl ARGUMENTS`, with what it printed; by default in this folder. `env` is added to the environment."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = CONTEXT.Process(target=_run, args=(words, out, err, str(cwd or Path.cwd()), dict(env or {})))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["dopd-vl", *words], timeout, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(["dopd-vl", *words], process.exitcode or 0, out.read_text(), err.read_text())


def _run(words: list[str], out: Path, err: Path, folder: str, env: dict[str, str]) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(env)
    os.chdir(folder)
    from dopd_vl.cli import main

    sys.argv = ["dopd-vl", *words]
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
