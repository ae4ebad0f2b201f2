"""One benchmark to be run by one harness: what its adapter gets, and what it gives back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation.config import BenchmarkSettings
from dopd_vl.harnesses.table import Benchmark, Harness, Route


class ResultError(UserError):
    """A harness left no result, or not the one that was expected."""


@dataclass(frozen=True)
class Job:
    """What an adapter needs to know."""

    benchmark: Benchmark
    route: Route
    harness: Harness
    model: str
    """folder or hub id"""
    label: str
    """the model's name with a digest of its weights: what a harness keeps is never another checkpoint's"""
    environment: Path
    """the harness's own, absolute"""
    folder: Path
    """of this benchmark's output, absolute"""
    settings: BenchmarkSettings
    trust_remote_code: bool = False

    @property
    def python(self) -> str:
        return str(self.environment / "bin" / "python")

    @property
    def source(self) -> Path:
        """The harness's checkout."""
        return self.environment / "source"

    @property
    def served_name(self) -> str:
        return self.settings.served_name or self.model

    def sampling(self) -> dict[str, Any]:
        """The settings that reach the model, by their own names."""
        # One seed would give a server's answer to a question as many times as it is asked.
        seed = ["seed"] if self.route.samples > 1 else []
        return self.benchmark.sampling.without([*self.harness.drops.get(self.settings.backend, []), *seed])


@dataclass(frozen=True)
class Step:
    """One command."""

    argv: list[str]
    cwd: Path | None = None
    programs: Path | None = None
    """a folder that is searched before all others for the programs that the command starts"""


class Score(NamedTuple):
    """What a harness measured, in per cent."""

    value: float
    parts: dict[str, float]
    """task (and metric) -> its own score, per cent"""
    questions: int | None
    """how many were scored, where the harness says"""


class Adapter(NamedTuple):
    """One harness: how it is told to run a job, and where and how its score is read."""

    steps: Callable[[Job], list[Step]]
    read: Callable[[Job], Score]
    backends: tuple[str, ...]


def combined(job: Job, parts: dict[str, float], questions: int | None) -> Score:
    """The unweighted mean of the parts, brought to per cent."""
    scale = 1.0 if job.route.percent else 100.0
    percent = {name: scale * value for name, value in parts.items()}
    for name, value in percent.items():
        if not 0 <= value <= 100:
            raise ResultError(f"{job.benchmark.name}: {name} is {value:g} per cent; has the harness changed its scale?")
    return Score(sum(percent.values()) / len(percent), percent, questions)


def newest(folder: Path, pattern: str, what: str) -> Path:
    """The file that was written last among those that match.

    Raises:
        ResultError: there is none.
    """
    files = sorted(folder.rglob(pattern), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise ResultError(f"{what} left no result: no {pattern} below {folder}")
    return files[-1]


def load_result(file: Path) -> dict[str, Any]:
    """A harness's JSON object.

    Raises:
        ResultError: it is none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ResultError(f"{file}: expected an object")
    return value


def number_at(value: Any, keys: list[str], file: Path) -> float:
    """The number that stands under `keys`.

    Raises:
        ResultError: there is none; the message says what is there.
    """
    here: Any = value
    for depth, key in enumerate(keys):
        if not isinstance(here, dict) or key not in here:
            known = ", ".join(sorted(map(str, here))[:12]) if isinstance(here, dict) else "nothing"
            raise ResultError(f"{file}: no {' / '.join(keys[: depth + 1])}; there is {known}")
        here = here[key]
    if isinstance(here, bool) or not isinstance(here, int | float) or here != here:
        raise ResultError(f"{file}: {' / '.join(keys)} is {here!r}, not a number")
    return float(here)
