"""Which parquet files of a folder are one split of one configuration: nothing is pooled that a set keeps apart.

The folder's README says so, in the form of the Hugging Face hub; without one the names of files and folders do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dopd_vl.common.errors import ConfigurationError, one_line
from privileged.sources.plain_yaml import PlainLoader

SPLIT_NAMES = frozenset(
    ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
)
"""Names that `datasets` takes for splits wherever they stand in the name of a file or a folder."""

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)


class SplitFile(NamedTuple):
    """A parquet file, and the configuration and split that it is of; empty where nothing says so."""

    config: str
    split: str
    path: Path


def files_of_split(given: Path, config: str | None, split: str | None) -> list[Path]:
    """The parquet files of one split of one configuration, in the order of their names, of a folder or a file alone.

    Raises:
        ConfigurationError: there is none, or several and the option that chooses is not set.
    """
    if given.is_file():
        files = [_named(given, given.parent)]
    else:
        files = _declared(given) or [_named(path, given) for path in sorted(given.rglob("[!.]*.parquet"))]
    if not files:
        raise ConfigurationError(f"source.options.path: {given} holds no parquet file")
    if split is not None:  # first: a configuration without it is none to choose
        files = _chosen(files, "split", split, given)
    files = _chosen(_chosen(files, "config", config, given), "split", split, given)
    return sorted({file.path for file in files})


def _chosen(files: list[SplitFile], kind: str, wanted: str | None, given: Path) -> list[SplitFile]:
    names = sorted({str(getattr(file, kind)) for file in files})
    if wanted is None and len(names) == 1:
        return files
    known = ", ".join(name or f"no name ({_example(files, kind)})" for name in names)
    if wanted is None:
        raise ConfigurationError(f"source.options.{kind}: {given} holds several, name one of them: {known}")
    if wanted not in names:
        raise ConfigurationError(
            f"source.options.{kind}: {given} holds no parquet file of {kind} {wanted!r}, but of {known}"
        )
    return [file for file in files if getattr(file, kind) == wanted]


def _example(files: list[SplitFile], kind: str) -> str:
    return next(file.path.name for file in files if not getattr(file, kind))


def _named(path: Path, folder: Path) -> SplitFile:
    """By names alone.

    >>> [_named(Path(f"set/{name}.parquet"), Path("set"))[:2] for name in ("en/test-00000-of-00002", "data/dev/0", "a")]
    [('en', 'test'), ('', 'dev'), ('', '')]
    """
    parents = [part for part in path.relative_to(folder).parts[:-1] if part != "data"]
    shard = _SHARD.match(path.stem)
    splits = [found for part in (path.stem, *reversed(parents), folder.name) if (found := _split_name(part))]
    split = shard[1] if shard else splits[0] if splits else ""
    return SplitFile("/".join(part for part in parents if not _split_name(part)), split, path)


def _split_name(name: str) -> str:
    return next((word for word in re.split(r"[-._ 0-9]+", name) if word.casefold() in SPLIT_NAMES), "")


def _declared(folder: Path) -> list[SplitFile]:
    """By the `configs` of the README's front matter, as `datasets` reads them; empty where it has none of parquet."""
    readme = folder / "README.md"
    if not readme.is_file():
        return []
    try:
        front = _FRONT_MATTER.match(readme.read_text(encoding="utf-8-sig"))
        content: Any = yaml.load(front[1], Loader=PlainLoader) if front else None
        configs = content.get("configs") if isinstance(content, dict) else None
        return [file for entry in configs or [] for file in _of_config(entry, folder)]
    # YAML or UTF-8 that is damaged, an entry that is no mapping or lacks its name, a pattern that is no text.
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"source.options.path: {readme} has configs that cannot be read ({one_line(error)})"
        ) from error


def _of_config(entry: dict[str, Any], folder: Path) -> Iterator[SplitFile]:
    from datasets.data_files import sanitize_patterns

    name, base = str(entry["config_name"]), folder / _inside(entry.get("data_dir") or ".")
    if "data_files" not in entry:
        for file in sorted(base.rglob("[!.]*.parquet")):
            yield _named(file, base)._replace(config=name)
        return
    for split, patterns in sanitize_patterns(entry["data_files"]).items():
        for pattern in patterns:
            for found in sorted(glob(_inside(pattern), root_dir=base, recursive=True)):
                if found.endswith(".parquet"):
                    yield SplitFile(name, split, base / found)


def _inside(pattern: str) -> str:
    """The pattern, unless it leads out of the folder that it is relative to."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ValueError(f"{pattern!r} leaves the folder")
    return pattern
