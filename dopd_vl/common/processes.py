"""Processes that were started in a session of their own."""

import os
import signal
import subprocess


def end_group(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Ask a process and whatever it started to stop, as Ctrl-C would, and after so many seconds make sure of it."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(seconds)
            return
        except ProcessLookupError:
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue


def is_first_process() -> bool:
    """Of those that a launcher started for one piece of work: the one that speaks, and writes what all share."""
    return int(os.environ.get("RANK", "0")) == 0
