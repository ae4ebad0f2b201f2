"""Runs a small program with limits on its time, memory, output and processes. THIS IS NO SECURITY BOUNDARY.

The limits keep a clumsy program from harming a training run: an endless loop, a full memory, a flood of output, a fork
bomb. `dopd_vl.evaluation.keeper` lays them down, and takes away what this kernel lets us take away: the network, other
processes, files outside the program's folder. SECURITY.md says what is left. Run untrusted models' code in a container
or a virtual machine of its own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation import keeper

GRACE = 20.0
"""Seconds for a busy machine to start a program, and to end it, beyond its own."""

_TRIAL = "import bisect, collections, datetime, decimal, heapq, json, math, random, re, statistics; print(1)"


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
    return _run(source, stdin, limits or Limits(), files or {}, _confinement())


def _run(
    source: str, stdin: str, limits: Limits, files: Mapping[str, str], confinement: Mapping[str, bool]
) -> Finished:
    with _folder() as folder:
        for name, content in {keeper.PROGRAM: source, keeper.GIVEN: stdin, keeper.PRINTED: "", **files}.items():
            (folder / name).write_text(content, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, json.dumps({**asdict(limits), **confinement})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            told, _ = process.communicate(timeout=limits.seconds + GRACE)
        except BaseException as error:
            process.terminate()  # it ends the program first
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            told = b""
        code: int | None = json.loads(told) if told else None
        printed = _text(folder / keeper.PRINTED, limits.output) or ""
        return Finished(code, printed, _text(folder / "result.json", limits.output))


@cache
def _confinement() -> dict[str, bool]:
    """What programs can be confined by here and still run.

    Raises:
        UserError: none runs at all.
    """
    for namespaces, landlock in ((True, True), (True, False), (False, False)):
        confinement = {"namespaces": namespaces, "landlock": landlock}
        if _run(_TRIAL, "", Limits(), {}, confinement).output == "1\n":
            return confinement
    raise UserError("allow_code: programs cannot be run on this machine, not even one that prints a number")


@contextmanager
def _folder() -> Iterator[Path]:
    """An empty one that is gone afterwards, whatever a program left in it."""
    folder = tempfile.mkdtemp(prefix="dopd-vl-program-")
    try:
        yield Path(folder)
    finally:
        try:
            shutil.rmtree(folder)
        except (OSError, RecursionError):  # nested deeper than Python goes down, or without rights
            for command in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
                subprocess.run([*command, "--", folder], capture_output=True, check=False)


def _text(path: Path, limit: int) -> str | None:
    # A program may have put a link or a pipe there.
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        return file.read(limit).decode("utf-8", errors="replace")
