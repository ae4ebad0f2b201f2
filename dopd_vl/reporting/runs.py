"""Reads run folders for the report: only what a run logged, nothing made up for what it did not."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vl.common.configuration import read_yaml
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import is_number, read_rows
from dopd_vl.common.run_layout import CONFIG_FILE, METRICS_FILE
from dopd_vl.reporting.figures import Line
from dopd_vl.run_folder.kept_files import check_unchanged
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
    settings: dict[str, Any]
    """dotted key -> value, of the resolved configuration"""


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


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """The settings in which runs differ: dotted key -> each run's value as text, None where a run has no such key.

    The folder is left out, for it always differs.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "output_dir")
    told = {key: [_as_text(run.settings[key]) if key in run.settings else None for run in runs] for key in keys}
    return {key: values for key, values in told.items() if len(set(values)) > 1}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration's leaves; an empty mapping has none."""
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): settings}
    return {key: value for name, inner in settings.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _read_run(folder: Path, name: str, group: str | None) -> Run:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it holds no {CONFIG_FILE}")
    check_unchanged(folder, [CONFIG_FILE, METRICS_FILE])
    config = in_todays_keys(read_yaml(path, str(path)))
    label = name
    if group is not None:
        found, value = _look_up(config, group)
        if not found:
            raise UserError(f"--group: {path} has no key {group!r}")
        label = str(value)
    _, objective = _look_up(config, "objective.name")
    _, seed = _look_up(config, "seed")
    return Run(folder, name, label, objective, seed, read_rows(folder / METRICS_FILE), _flat(config))


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
