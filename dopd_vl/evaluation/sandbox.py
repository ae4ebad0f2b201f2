"""Runs a small program with limits on its time, memory, output and processes. THIS IS NO SECURITY BOUNDARY.

The limits keep a clumsy program from harming a training run: an endless loop, a full memory, a flood of output, a fork
bomb. A program that means harm can still read what this user can read. Run untrusted models' code in a container or a
virtual machine of its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Sets limits on itself, then becomes the program; a function run between fork and exec of a process with threads
# (torch's) could deadlock. Root is exempt from the limit on processes, unless its real user is another one and it holds
# no capabilities: so root lays both down. Files stay readable, as the interpreter may be root's own.
_LAUNCHER = """
import ctypes, os, resource, sys
cpu, memory, output, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for name, value in (("CPU", cpu), ("AS", memory), ("FSIZE", output), ("NOFILE", 64), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
if os.geteuid() == 0:
    capability = 0
    while libc.prctl(24, capability, 0, 0, 0) == 0:  # PR_CAPBSET_DROP
        capability += 1
    os.setresuid(65534, 0, 0)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))  # after the change of user, which would count its processes
os.execv(sys.executable, [sys.executable, "-I", "-S", program])
"""


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use."""

    seconds: float = 10.0
    """wall clock, and rounded up of the processor"""
    memory: int = 1024 * 1024 * 1024
    """bytes of address space"""
    output: int = 4 * 1024 * 1024
    """bytes of any one file, standard output among them"""


@dataclass(frozen=True)
class Finished:
    """How a program ended: `code` 0 is success, negative the signal that ended it, None that its time was up."""

    code: int | None
    output: str
    result: str | None = None
    """the content of `result.json`, if the program wrote one"""


def run_program(
    source: str, stdin: str = "", limits: Limits | None = None, files: dict[str, str] | None = None
) -> Finished:
    """Run Python source, with the standard library alone, in a process of its own, in an empty folder, without an
    environment and, where the kernel lets us, without a network.

    Args:
        files: More files of its folder, {name: content}.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="dopd-vl-program-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for file_name, content in {"program.py": source, "stdin": stdin, **(files or {})}.items():
            (folder / file_name).write_text(content, encoding="utf-8", errors="replace")
        command = [
            *_without_network(),
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER),
            *(str(int(limits.seconds) + 1), str(limits.memory), str(limits.output), "program.py"),
        ]
        with (folder / "stdin").open("rb") as given, (folder / "stdout").open("wb") as printed:
            process = subprocess.Popen(
                command,
                stdin=given,
                stdout=printed,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
        printed_text = _text(folder / "stdout", limits.output) or ""
        return Finished(code, printed_text, _text(folder / "result.json", limits.output))


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End the program and whatever it started: its group outlives it when something in it still runs."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
    finally:
        process.wait()


def _text(path: Path, limit: int) -> str | None:
    # A program may have put a link or a pipe there.
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        return file.read(limit).decode("utf-8", errors="replace")


@cache
def _without_network() -> tuple[str, ...]:
    """The command in front of a program that takes its network away; empty where the kernel does not let us."""
    tool = shutil.which("unshare")
    if tool is None:
        return ()
    for flags in (("--net",), ("--user", "--map-current-user", "--net")):
        tried = subprocess.run([tool, *flags, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return (tool, *flags, "--")
    return ()
