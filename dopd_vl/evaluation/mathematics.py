"""Are two expressions equal? math-verify says so in a process of its own, as it may not come to an end."""

import atexit
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Lock

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation.math_worker import SECONDS

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from dopd_vl.evaluation.math_worker import main
main()
"""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What of the environment the process gets: it reads foreign text and needs no secrets."""


class Undecided(Exception):
    """A verifier came to no verdict. The message is the reason."""


def verify_math(response: str, answer: str) -> bool:
    """Mathematically equal, judged by math-verify within 5 seconds of the processor and 2 GiB.

    Raises:
        Undecided: it met a limit or an error; `judge` counts that as wrong.
        UserError: math-verify cannot be started at all.
    """
    verdict = _WORKER.ask(response, answer)
    if isinstance(verdict, bool):
        return verdict
    raise Undecided(f"math-verify: {verdict}")


class _Worker:
    """One long-lived process, started by the first question and replaced when it dies.

    A fork of this one would come with locks that torch's threads hold and with CUDA's state, and what multiprocessing
    spawns imports the user's script: this is a plain Python that imports math-verify alone.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def ask(self, response: str, answer: str) -> bool | str:
        """The verdict, or why there is none."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.end()  # something outside ended it while it was idle
            try:
                verdict = self._exchange(self._process or self._start(), json.dumps([response, answer]))
            except BaseException:  # as of Ctrl-C, which leaves an answer on its way
                self.end()
                raise
            if verdict is not None:
                return verdict
            code = self.end()
            return f"more than {SECONDS:g} seconds" if code == -signal.SIGPROF else f"it ended with code {code}"

    def _start(self) -> "subprocess.Popen[str]":
        process = self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        assert process.stdout is not None
        if not process.stdout.readline():
            raise UserError(f"task math: math-verify does not start (exit code {self.end()}); install it anew")
        return process

    def _exchange(self, process: "subprocess.Popen[str]", question: str) -> bool | str | None:
        """None where the process died of it."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        line = process.stdout.readline()
        verdict: bool | str | None = json.loads(line) if line.endswith("\n") else None
        return verdict

    def end(self) -> int | None:
        """The exit code of the process, which is over then."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        with suppress(BrokenPipeError):  # what it was asked did not reach it
            process.stdin.close()
        return process.wait()


_WORKER = _Worker()
atexit.register(_WORKER.end)
os.register_at_fork(after_in_child=_WORKER.__init__)  # type: ignore[misc]  # a child asks a process of its own
