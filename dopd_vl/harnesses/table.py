"""`data/benchmarks.yaml` and `data/paper_results.yaml` as values."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import yaml

from dopd_vl.common.configuration import settings_of
from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.common.resources import shipped

BENCHMARKS_FILE = "data/benchmarks.yaml"
PAPER_FILE = "data/paper_results.yaml"
PAIRS = ("llm", "vlm")


@dataclass(frozen=True)
class Harness:
    """A program that runs benchmarks: a package of PyPI, or a checkout with a file to run."""

    name: str
    version: str
    """that the table was checked against: a release, or a commit"""
    install: list[str]
    """shell commands; {environment} is the folder that they fill"""
    package: str | None = None
    checkout: str | None = None
    file: str | None = None
    """of a checkout: what must be there, relative to `source/`"""
    drops: dict[str, list[str]] = field(default_factory=dict)
    """backend -> sampling settings that this harness does not pass on to it"""


@dataclass(frozen=True)
class GenerationSettings:
    """How a benchmark's responses are drawn."""

    source: str
    temperature: float
    top_p: float
    top_k: int
    presence_penalty: float
    repetition_penalty: float
    seed: int
    max_new_tokens: int

    def without(self, dropped: Sequence[str]) -> dict[str, Any]:
        """name -> value of the settings that are passed on."""
        return {name: value for name, value in vars(self).items() if name not in ("source", *dropped)}


@dataclass(frozen=True)
class ScorePart:
    """One number of a harness's result."""

    task: str
    metric: str
    aggregation: str = "mean"
    subset: str | None = None


@dataclass(frozen=True)
class Route:
    """How one harness scores one benchmark."""

    harness: str
    rule: str
    scores: list[ScorePart]
    """the score is their unweighted mean"""
    percent: bool = False
    """the harness gives 0 to 100, not 0 to 1"""
    samples: int = 1
    """responses to each question"""
    likelihood: bool = False
    """scored by likelihood; nothing is generated"""
    needs_server: bool = False
    runs_code: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """what this harness alone understands"""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the paper."""

    name: str
    sampling: GenerationSettings
    routes: dict[str, Route]
    """harness -> how; the first is the default"""


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's two tables: per cent, as printed."""

    pair: str
    teacher: str
    student: str
    benchmarks: list[str]
    rows: dict[str, list[float]]
    """teacher, student and methods -> scores in the order of `benchmarks`"""


@cache
def harnesses() -> dict[str, Harness]:
    return {
        name: settings_of(Harness, {"name": name, **values}, f"{BENCHMARKS_FILE}: harnesses.{name}")
        for name, values in _read(BENCHMARKS_FILE)["harnesses"].items()
    }


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark of the table, by the paper's name for it."""
    table = _read(BENCHMARKS_FILE)
    found = {}
    for name, values in table["benchmarks"].items():
        where = f"{BENCHMARKS_FILE}: benchmarks.{name}"
        sampling = settings_of(GenerationSettings, table["sampling"][values["sampling"]], f"{where}.sampling")
        routes = {
            harness: _route({"harness": harness, **route}, f"{where}.routes.{harness}")
            for harness, route in values["routes"].items()
        }
        found[name] = Benchmark(name, sampling, routes)
    return found


def _route(values: dict[str, Any], where: str) -> Route:
    scores = [settings_of(ScorePart, part, f"{where}.scores") for part in values["scores"]]
    return replace(settings_of(Route, {**values, "scores": []}, where), scores=scores)


@cache
def paper_table(pair: str) -> PaperTable:
    """The paper's table of text models ("llm") or vision models ("vlm")."""
    values = _read(PAPER_FILE)[pair]
    rows = {name: row["scores"] for name, row in values["rows"].items()}
    return PaperTable(pair, values["pair"]["teacher"], values["pair"]["student"], values["benchmarks"], rows)


def benchmarks_of(suite: str) -> list[str]:
    """The benchmarks that `paper-vlm`, `paper-llm` or a list of names with commas stands for.

    >>> benchmarks_of("MMMU, AIME25")
    ['MMMU', 'AIME25']

    Raises:
        ConfigurationError: there is no such suite or benchmark.
    """
    suites = {f"paper-{pair}": paper_table(pair).benchmarks for pair in PAIRS}
    if suite in suites:
        return list(suites[suite])
    names = list(dict.fromkeys(name.strip() for name in suite.split(",") if name.strip()))
    folded = {name.lower(): name for name in benchmarks()}
    for name in names:
        if name.lower() not in folded:
            raise ConfigurationError(f"suite: unknown {name!r}, {nearest(name, [*suites, *folded.values()])}")
    if not names:
        raise ConfigurationError(f"suite: names no benchmark; known: {', '.join([*suites, *folded.values()])}")
    return [folded[name.lower()] for name in names]


def pair_of(names: Sequence[str]) -> str:
    """Whose table these benchmarks stand in.

    Raises:
        ConfigurationError: some stand in one, some in the other.
    """
    pairs = {pair: [name for name in names if name in paper_table(pair).benchmarks] for pair in PAIRS}
    if all(pairs.values()):
        text, vision = (pairs[pair][0] for pair in PAIRS)
        raise ConfigurationError(
            f"suite: {text} is of the paper's text table, {vision} of its vision table; run them apart"
        )
    return next(pair for pair, found in pairs.items() if found)


def _read(file: str) -> dict[str, Any]:
    return yaml.safe_load(shipped(file).read_text(encoding="utf-8"))
