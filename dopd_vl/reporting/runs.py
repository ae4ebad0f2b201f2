"""Reads run folders for the report: only what a run logged, nothing made up for what it did not."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.health.rows import is_number
from dopd_vl.reporting.figures import Line
from dopd_vl.train_config import in_todays_keys


@dataclass(frozen=True)
class Run:
    """A run folder's configuration and metrics."""

    folder: Path
    name: str
    group: str
    """runs of one group are one line in the charts"""
    objective: str | None
    seed: int | None
    metrics: list[dict[str, Any]]
    """rows of metrics.jsonl, each with its step"""


def read_runs(folders: Sequence[Path], group: str | None = None) -> list[Run]:
    """Read runs; `group` is a dotted key of their configuration, such as `objective.name`.

    Raises:
        UserError: a folder is no run folder, its configuration lacks the key, or its metrics are none.
    """
    names = _short_names(folders)
    return [_read_run(folder, name, group) for folder, name in zip(folders, names, strict=True)]


def curve(runs: Sequence[Run], quantity: str) -> list[Line]:
    """A line for each group that logged the quantity: its runs' mean at each step, from the least to the greatest."""
    lines = []
    for number, group in enumerate(dict.fromkeys(run.group for run in runs)):
        at: dict[int, list[float]] = {}
        for run in runs:
            if run.group == group:
                for row in run.metrics:
                    if is_number(row.get(quantity)):
                        at.setdefault(row["step"], []).append(row[quantity])
        if at:
            steps = sorted(at)
            means = [sum(at[step]) / len(at[step]) for step in steps]
            low, high = ([pick(at[step]) for step in steps] for pick in (min, max))
            lines.append(Line(group, number, list(steps), means, low, high))
    return lines


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a run's JSONL file, each an object with the step it was written at; a cut last line is left out.

    Raises:
        UserError: a row is something else.
    """
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}: line {number} is no object with a step")
    return rows


def _read_run(folder: Path, name: str, group: str | None) -> Run:
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml")
    try:
        config = in_todays_keys(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no YAML file: {error}") from error
    label = name
    if group is not None:
        found, value = _look_up(config, group)
        if not found:
            raise UserError(f"--group: {path} has no key {group!r}")
        label = str(value)
    _, objective = _look_up(config, "objective.name")
    _, seed = _look_up(config, "seed")
    return Run(folder, name, label, objective, seed, read_rows(folder / "metrics.jsonl"))


def _look_up(config: Any, key: str) -> tuple[bool, Any]:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False, None
        config = config[part]
    return True, config


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where they differ, else their paths from where these part, e.g. `dopd/seed-0`."""
    whole = [folder.resolve() for folder in folders]
    short = [path.name for path in whole]
    if len(set(short)) == len(short) or len(set(whole)) == 1:
        return short
    parent = os.path.commonpath(whole)
    return [str(path.relative_to(parent)) for path in whole]
