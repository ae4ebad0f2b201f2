"""The keys of `dopd-vl study --config FILE`, and the runs that they unfold into."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError, UserError, nearest
from dopd_vl.common.run_layout import STUDENT_FOLDER
from dopd_vl.train_config import TrainConfig

DATA_PREFIX = "study:"
OWN_KEYS = ("output_dir", "seed", "resume")


@dataclass
class StudyConfig:
    """Train a grid of runs with equal budgets and compare what they come to.

    A study may stand in two files, the world (models, data, steps) and the question (cells, grid, stages): give
    `--config` twice. A key of the second takes the place of the first's; `settings`, `grid` and `tune_values` add up,
    key by key. See docs/studies.md.
    """

    DOTTED: ClassVar = {"settings": 0, "grid": 0, "tune_values": 0, "cells": 1, "stages": 1}

    output_dir: str = "runs/studies"
    """The folder of all studies, and of the data that they make and share."""
    name: str = ""
    """The study's name, and that of its folder in output_dir."""
    train_config: str = "configs/vlm/nano.yaml"
    """The training run that every cell begins from."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of a training run, for every cell, e.g. {training.max_steps: 150}."""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The dotted keys of each cell by its name."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """The values of each dotted key: every combination is run for every cell."""
    tune: list[str] = field(default_factory=list)
    """Dotted keys that each cell is run at the best of, e.g. [training.learning_rate]: the first seed tries every
    combination of their `tune_values`, and the other seeds are run with the one that scores best on `tune_on`. A cell
    that gives such a key itself is run with what it gives."""
    tune_values: dict[str, list[Any]] = field(default_factory=dict)
    """The values of each dotted key of `tune`; a world may give them for keys that no study tunes."""
    tune_on: str | None = None
    """The data set of `data` that the values are chosen on. It should share no record with those of `score`."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The dotted keys of each stage by its name: one run after another, each from the student that the one before
    made."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Every cell is run once with each of these seeds."""
    baseline: str | None = None
    """The cell that the others are compared with; with a grid a key of `cells`, at the same values of the grid. By
    default none are compared."""
    equal_budget: bool = True
    """Refuse cells that differ in steps or rollouts a step."""
    data: dict[str, Any] = field(default_factory=dict)
    """The folder of a privileged data set by a name, or a source of `dopd-vl prepare` (kind, options) to make it from;
    elsewhere it is `study:NAME`."""
    score: dict[str, str] = field(default_factory=dict)
    """The held-out data sets, by a name, that every final student is scored on. By default it is the runs' own
    `data.eval`."""
    score_variants: list[str] = field(default_factory=lambda: ["none"])
    """What a final student is shown when it is scored, one after another; the first is what a deployed student sees."""
    score_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the weights when final students are scored; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    paper: dict[str, str] = field(default_factory=dict)
    """The table and column of data/paper_analyses.yaml to show beside ours, as {table: .., column: ..}; its rows are
    named as the cells."""
    keep_checkpoints: bool = True
    """Keep a run's checkpoints once it is finished and scored. They take several times the space of its student, and
    without them it cannot be given more steps."""
    workers: int = 1
    """So many runs are made at a time."""
    threads: int = 1
    """A run has so many CPU threads."""
    devices: list[str] = field(default_factory=list)
    """GPUs, e.g. ["0", "1"] or ["0,1", "2,3"]: each has one run at a time, in place of `workers`."""
    rerun: bool = False
    """Remove runs and data that were made with other settings, and make them anew; otherwise they are refused."""
    launcher: str = ""
    """What starts a run, e.g. "accelerate launch --num_processes 8". By default it is this Python."""


@dataclass(frozen=True)
class Cell:
    """One combination of settings, run once a seed."""

    name: str
    overrides: Mapping[str, Any]
    baseline: str | None = None
    """name of the cell that it is compared with; its own for a baseline"""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """the values of `StudyConfig.tune` among the overrides"""

    @property
    def title(self) -> str:
        """The name, and the values that are tried."""
        return with_values(self.name, self.tuned)

    @property
    def slug(self) -> str:
        """The title as a folder's name."""
        return re.sub(r"[^a-z0-9.=+-]+", "-", self.title.casefold()).strip("-.") or "cell"


@dataclass(frozen=True)
class Run:
    """One cell with one seed: one training run, or one a stage."""

    cell: Cell
    seed: int
    folder: Path
    stages: tuple[tuple[str, TrainConfig], ...]
    """(name, configuration); the name is empty where the study has no stages"""

    @property
    def references(self) -> list[str]:
        """The student that it begins with, and its teacher where it has one in its own process."""
        return list(dict.fromkeys(self.stages[0][1].model.in_process().values()))

    @property
    def last_stage(self) -> str:
        """The name among the scores of the student that comes of it."""
        return self.stages[-1][0] or "student"

    @property
    def steps(self) -> int:
        return sum(config.training.max_steps for _, config in self.stages)

    @property
    def rollouts(self) -> int:
        """Per device, in all."""
        return sum(
            c.training.max_steps * c.training.per_device_train_batch_size * c.training.gradient_accumulation_steps
            for _, c in self.stages
        )


TUNING = "tuning"
"""The name among the scores of the data set that `StudyConfig.tune_on` names."""


def study_folder(config: StudyConfig) -> Path:
    """Where everything of a study lies."""
    return Path(config.output_dir) / config.name


def check(config: StudyConfig) -> list[Run]:
    """All runs of a study, once nothing is found wrong with it: of one that tunes, those of every value.

    Raises:
        ConfigurationError: names the key.
    """
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise ConfigurationError(f"seeds: must be different numbers, at least one, not {config.seeds}")
    if not config.cells and not config.grid:
        raise ConfigurationError("cells: a study needs cells or a grid")
    for key in ("workers", "threads"):
        if getattr(config, key) < 1:
            raise ConfigurationError(f"{key}: {getattr(config, key)} is less than 1")
    _check_tuning(config)
    cells = expand(config)
    slugs: dict[str, str] = {}
    for cell in cells:
        if cell.slug in slugs:
            raise ConfigurationError(
                f"cells: {slugs[cell.slug]!r} and {cell.title!r} would share one folder; rename one"
            )
        slugs[cell.slug] = cell.title
    names = list(dict.fromkeys(cell.name for cell in cells))
    if config.baseline is not None and config.baseline not in {*names, *config.cells}:
        raise ConfigurationError(f"baseline: no cell {config.baseline!r}, {nearest(config.baseline, names)}")
    if not config.score_variants:
        raise ConfigurationError("score_variants: at least one")
    from dopd_vl.training.checks import check as check_training  # torch: only once the study itself is sound

    runs = unfold(config)
    for run in runs:
        if run.seed != config.seeds[0]:
            break  # seed by seed, and the others differ in that alone
        for _, stage in run.stages:
            try:
                check_training(stage)
            except UserError as error:
                raise ConfigurationError(f"cells.{run.cell.name}: {error}") from error
            if stage.training.max_steps < 0:
                raise ConfigurationError(f"cells.{run.cell.name}: a study counts steps; give training.max_steps")
            if config.equal_budget and stage.training.early_stopping_patience is not None:
                raise ConfigurationError(
                    f"cells.{run.cell.name}: training.early_stopping_patience makes budgets unequal; set equal_budget: "
                    "false if that is meant"
                )
    budgets = {run.cell.title: (run.steps, run.rollouts) for run in runs}
    first = cells[0].title
    for name, budget in budgets.items():
        if config.equal_budget and budget != budgets[first]:
            raise ConfigurationError(
                f"cells.{name}: {budget[0]} steps and {budget[1]} rollouts a device, where {first!r} has "
                f"{budgets[first][0]} and {budgets[first][1]}; set equal_budget: false if that is meant"
            )
    return runs


def _check_tuning(config: StudyConfig) -> None:
    if not config.tune:
        return
    if config.tune_on is None:
        raise ConfigurationError("tune_on: a study that tunes needs a data set to choose the values on")
    if TUNING in config.score:
        raise ConfigurationError(f"score: {TUNING!r} is what the scores on tune_on are called; name it otherwise")
    tuned_on = resolve(config, f"{DATA_PREFIX}{config.tune_on}")
    for name, folder in config.score.items():
        if resolve(config, folder) == tuned_on:
            raise ConfigurationError(f"tune_on: {config.tune_on} is scored, as {name!r}; choose on another data set")
    if len(set(config.tune)) != len(config.tune):
        raise ConfigurationError(f"tune: names a key twice, {config.tune}")
    given = {"grid": config.grid}
    # A cell may give the key's own value, but not within a mapping of several.
    given |= {
        f"cells.{name}": {key: value for key, value in overrides.items() if key not in config.tune}
        for name, overrides in config.cells.items()
    }
    given |= {f"stages.{name}": overrides for name, overrides in config.stages.items()}
    for key in config.tune:
        if not config.tune_values.get(key):
            raise ConfigurationError(f"tune_values: none for {key}, {nearest(key, config.tune_values)}")
        for place, overrides in given.items():
            if key in _dotted(overrides):
                raise ConfigurationError(f"{place}: {key} is tuned; leave it out")


def expand(config: StudyConfig) -> list[Cell]:
    """Every combination of cells, grid values and values to tune, in the order of the file."""
    cells = config.cells or {"": {}}
    found = []
    for name, overrides in cells.items():
        for values in _combinations(config.grid):
            baseline = with_values(config.baseline, values) if config.baseline in cells else config.baseline
            whole = with_values(name, values)
            tried = {key: [overrides[key]] if key in overrides else config.tune_values[key] for key in config.tune}
            for tuned in _combinations(tried):
                found.append(Cell(whole, {**overrides, **values, **tuned}, baseline, tuned))
    return found


def _dotted(overrides: Mapping[str, Any]) -> Iterator[str]:
    """Every dotted key that is given, those of mappings within as well."""
    for key, value in overrides.items():
        yield key
        if isinstance(value, Mapping):
            yield from (f"{key}.{name}" for name in _dotted(value))


def _combinations(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_values(name: str, values: Mapping[str, Any]) -> str:
    """A name followed by values, each by the short name of its key."""
    short = short_names(list(values))
    return " ".join([*([name] if name else []), *(f"{short[key]}={shown(value)}" for key, value in values.items())])


def unfold(config: StudyConfig) -> list[Run]:
    """All runs, seed by seed, so that an early look at the results compares like with like.

    Raises:
        ConfigurationError: a setting that no training run has; the message names the cell.
    """
    cells = [(cell, _stages(config, cell)) for cell in expand(config)]
    return [_run(config, cell, stages, seed) for seed in config.seeds for cell, stages in cells]


def _stages(config: StudyConfig, cell: Cell) -> list[tuple[str, TrainConfig]]:
    """A cell's stages by name, whatever the seed; a study without stages has one without a name."""
    stages = []
    for name, overrides in (config.stages or {"": {}}).items():
        settings = [*config.settings.items(), *overrides.items(), *cell.overrides.items()]
        for key in OWN_KEYS:
            if any(key == name for name, _ in settings):
                raise ConfigurationError(f"cells.{cell.name}: {key} is the study's own; leave it out")
        # In this order, and none left out: what leads into a mapping changes only what it names.
        options = [f"--{key}={_value(resolve(config, value))}" for key, value in settings]
        try:
            base = ["--config", config.train_config]
            stages.append((name, read_config(TrainConfig, [*base, *options], "dopd-vl study")))
        except ConfigurationError as error:
            raise ConfigurationError(f"cells.{cell.name}: {error}") from error
    return stages


def _run(config: StudyConfig, cell: Cell, stages: list[tuple[str, TrainConfig]], seed: int) -> Run:
    folder = study_folder(config) / "runs" / cell.slug / f"seed-{seed}"
    runs: list[tuple[str, TrainConfig]] = []
    for number, (name, settings) in enumerate(stages, start=1):
        place = folder / f"{number}-{Cell(name, {}).slug}" if name else folder
        # Each stage begins with the student of the one before, whatever the cell says.
        student = str(Path(runs[-1][1].output_dir) / STUDENT_FOLDER) if runs else settings.model.student
        model = replace(settings.model, student=student)
        runs.append((name, replace(settings, output_dir=str(place), seed=seed, resume=True, model=model)))
    return Run(cell, seed, folder, tuple(runs))


def resolve(config: StudyConfig, value: Any) -> Any:
    """`study:NAME` as the folder of that data set; anything else as it is.

    Raises:
        ConfigurationError: the study has no data set of that name.
    """
    if not isinstance(value, str) or not value.startswith(DATA_PREFIX):
        return value
    name = value.removeprefix(DATA_PREFIX)
    if name not in config.data:
        raise ConfigurationError(f"data: no data set {name!r}, {nearest(name, config.data)}")
    given = config.data[name]
    return given if isinstance(given, str) else str(data_folder(config, name))


def data_folder(config: StudyConfig, name: str) -> Path:
    """Where a data set lies that the study makes: beside all studies of its output_dir, which share it."""
    return Path(config.output_dir) / "data" / name


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)  # JSON is YAML: null, true, [..] and {..} read as what they are


def shown(value: Any) -> str:
    """A value as it stands in a cell's name and in tables."""
    if isinstance(value, dict | list):
        return json.dumps(value)
    return Path(value).name if isinstance(value, str) and "/" in value else str(value).removeprefix("nano:")


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key where two end alike."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
