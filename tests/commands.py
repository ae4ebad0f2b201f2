"""The real command in a process of its own: the fork of a server that has the imports, which take seconds, behind it.

What is read from the environment at import (HF_HOME, ...) cannot be changed for such a process; a test of that starts
`python -m dopd_vl.cli` itself, as do those of start-up time and of what is imported.
"""

import gc
import multiprocessing
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


class Fork:
    """A function under way in a process of its own; what it prints goes to two files."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ):
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("out", "err")]
        work = (function, arguments, self.files, str(cwd or Path.cwd()), dict(env or {}))
        self.process = CONTEXT.Process(target=_run, args=work)
        self.process.start()

    def send(self, sign: signal.Signals) -> None:
        """A signal, if it is still under way."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, sign)

    def result(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Its exit code (of an int that the function returned, or 0) and what it printed, once it has ended."""
        self.process.join(timeout)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        out, err = (file.read_text(encoding="utf-8") if file.exists() else "" for file in self.files)
        self.folder.cleanup()
        if late:
            raise subprocess.TimeoutExpired(self.process.name, timeout, out, err)
        return subprocess.CompletedProcess([], self.process.exitcode or 0, out, err)


def dopd_vl(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    memory: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """`dopd-vl ARGUMENTS`, by default in this folder.

    Args:
        env: is added to the environment.
        memory: bytes that it may take beside what its imports hold.
    """
    return start_dopd_vl(*arguments, cwd=cwd, env=env, memory=memory).result(timeout)


def start_dopd_vl(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, memory: int | None = None
) -> Fork:
    """The same, under way."""
    return Fork(_command, [str(argument) for argument in arguments], memory, cwd=cwd, env=env)


def run_script(
    file: Path, *arguments: object, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python FILE ARGUMENTS`."""
    return Fork(_script, file, [str(argument) for argument in arguments], cwd=cwd).result(timeout)


def _script(file: Path, words: list[str]) -> None:
    sys.argv = [str(file), *words]
    sys.path.insert(0, str(file.parent))
    runpy.run_path(str(file), run_name="__main__")


def _command(words: list[str], memory: int | None) -> int:
    from dopd_vl.cli import main

    if memory is not None:
        held = re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert held is not None
        limit = 1024 * int(held[1]) + memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.argv = ["dopd-vl", *words]
    return main(words)


def _run(
    function: Callable[..., Any], arguments: Sequence[Any], files: Sequence[Path], folder: str, env: Mapping[str, str]
) -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and the tests' children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(env)
    os.chdir(folder)
    try:
        returned = function(*arguments)
        code = returned if isinstance(returned, int) else 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what threads of libraries are about does not keep it


def remount(disk: Path, how: str) -> None:
    """Make a mounted file system "ro" or "rw". A file that was written to may be open until it is collected, and it is
    busy for so long."""
    deadline = time.monotonic() + 20
    while subprocess.run(["mount", "-o", f"remount,{how}", disk], capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{disk} cannot be made {how}"
        gc.collect()
        time.sleep(0.1)
