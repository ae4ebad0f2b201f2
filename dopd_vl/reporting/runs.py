"""Reads run folders for the report: only what a run logged, nothing made up for what it did not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dopd_vl.errors import UserError
from dopd_vl.files import read_jsonl


@dataclass(frozen=True)
class Run:
    """A run folder as the report shows it."""

    name: str
    group: str
    metrics: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]


def read_runs(folders: list[Path], group: str | None = None) -> list[Run]:
    """Read runs; `group` is a dotted key of their configuration, such as `objective.name`.

    Raises:
        UserError: a folder is no run folder, or its configuration lacks the key.
    """
    names = _short_names(folders)
    return [_read_run(folder, name, group) for folder, name in zip(folders, names, strict=True)]


def _read_run(folder: Path, name: str, group: str | None) -> Run:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml")
    label = name
    if group is not None:
        value: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        for key in group.split("."):
            if not isinstance(value, dict) or key not in value:
                raise UserError(f"--group: {folder / 'config.yaml'} has no key {group!r}")
            value = value[key]
        label = str(value)
    return Run(name, label, read_jsonl(folder / "metrics.jsonl"), read_jsonl(folder / "rollouts.jsonl"))


def _short_names(folders: list[Path]) -> list[str]:
    """The folders' own names where they differ, else their whole paths."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
