"""Rows of tables by number: datasets written by `save_to_disk` or loaded from the hub, and parquet files.

Images stay encoded; numbers of classes become the names that the table's features give them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dopd_vl.common.errors import ConfigurationError, RecordError, one_line
from privileged.sources.splits import files_of_split

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

FOOTER_BYTES = 64 * 1024
"""Of a parquet file, for fingerprints: sizes, offsets and statistics stand there and change with the content."""

BATCH = 1000
"""Rows of a mapped dataset that are read at once."""

Decoder = Callable[[dict[str, Any]], dict[str, Any]]


class Numbered(Protocol):
    """Raw records or rows by number."""

    def fingerprint(self) -> str:
        """Changes whenever any record would."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """One raw record. RecordError when it cannot be read: it is set aside and the run goes on."""
        ...


class Rows(Numbered, Protocol):
    """Rows by number, and the names of their columns. Numbers of a `ClassLabel` are given as their names."""

    columns: list[str]

    def values(self, column: str) -> Iterator[Any]:
        """One column of every row, in order, without reading the others; a RecordError where it cannot be read."""
        ...


def saved_rows(path: Path, split: str | None) -> Rows:
    """A dataset written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, memory-mapped."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # whatever datasets, arrow or the file system make of a damaged folder
        raise ConfigurationError(
            f"source.options.path: {path} is no readable saved dataset ({one_line(error)})"
        ) from error
    if split is not None and not isinstance(loaded, DatasetDict):
        raise ConfigurationError(f"source.options.split: {path} has no splits; leave it out")
    return _MappedRows("saved", loaded, split)


def hub_rows(dataset_id: str, revision: str | None, config: str | None, split: str | None) -> Rows:
    """A dataset loaded by `datasets.load_dataset`, memory-mapped from its cache. No code of it is run."""
    from datasets import load_dataset

    where = f"source.options.id: {dataset_id!r}"
    if dataset_id.count("/") != 1:  # load_dataset would take a local folder, or a builder such as "json"
        raise ConfigurationError(f"{where} is no hub id (owner/name); for files on this machine use the kind dataset")
    try:
        loaded = load_dataset(dataset_id, name=config, revision=revision)
    except Exception as error:  # no network, no such dataset or revision, files that do not fit together, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigurationError(
            f"{where} could not be loaded ({reason}); without a network, download it elsewhere and use the kind "
            "dataset with its path"
        ) from error
    return _MappedRows("hub", loaded, split)


class _MappedRows:
    def __init__(self, kind: str, loaded: Dataset | DatasetDict, split: str | None):
        from datasets import DatasetDict

        dataset = pick_split(loaded, split) if isinstance(loaded, DatasetDict) else loaded
        self._kind, self._fingerprint = kind, dataset._fingerprint
        # The arrow format hands out what is stored: images as bytes and path, not decoded.
        self._rows = dataset.with_format("arrow")
        self.columns = list(dataset.column_names)
        self._decode = _decoder(dataset.features)

    def values(self, column: str) -> Iterator[Any]:
        rows = self._rows.select_columns([column])
        for start in range(0, len(rows), BATCH):
            stop = min(start + BATCH, len(rows))
            yield from _column(partial(rows.__getitem__, slice(start, stop)), self._decode, column, stop - start)

    def fingerprint(self) -> str:
        return f"{self._kind}:{self._fingerprint}:{len(self)}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._decode(
            _only_row(lambda: self._rows[index : index + 1], f"row {index} of the {self._kind} dataset")
        )


def pick_split(splits: DatasetDict, split: str | None) -> Dataset:
    """The split of that name, or the only one; ConfigurationError names those that there are."""
    names = [str(name) for name in splits]
    if split is None and len(names) == 1:
        split = names[0]
    if split is None:
        raise ConfigurationError(f"source.options.split: there are several, name one of them: {', '.join(names)}")
    if split not in names:
        raise ConfigurationError(f"source.options.split: {split!r} is not among the splits {', '.join(names)}")
    return splits[split]


class ParquetRows:
    """Parquet files in the order of their names. One row group is held in memory."""

    def __init__(self, path: Path, config: str | None, split: str | None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = files_of_split(path, config, split)
        self.columns: list[str] = []
        self._files: list[pq.ParquetFile] = []
        self._decoders: list[Decoder] = []
        self._groups: list[tuple[int, int]] = []  # (file, row group) in order
        self._starts: list[int] = []  # first row of each group
        self._count = 0
        digest = hashlib.sha256()
        for number, file_path in enumerate(paths):
            try:
                file = pq.ParquetFile(file_path)
            except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a column's name is no UTF-8
                raise ConfigurationError(
                    f"source.options.path: {file_path} is no readable parquet file ({one_line(error)})"
                ) from error
            self._files.append(file)
            self._decoders.append(_decoder(_features(file.schema_arrow, file_path)))
            self.columns += [name for name in file.schema_arrow.names if name not in self.columns]
            for group in range(file.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(self._count)
                self._count += file.metadata.row_group(group).num_rows
            digest.update(f"{file_path.name}:{file_path.stat().st_size}:".encode() + _footer(file_path))
        self._digest = digest.hexdigest()
        self._loaded: tuple[int, Any] = (-1, None)

    def fingerprint(self) -> str:
        return f"parquet:{self._digest}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        number = bisect_right(self._starts, index) - 1
        offset = index - self._starts[number]
        decode = self._decoders[self._groups[number][0]]
        return decode(_only_row(lambda: self._group(number).slice(offset, 1), f"row {index} of the parquet files"))

    def values(self, column: str) -> Iterator[Any]:
        for number, group in self._groups:
            file = self._files[number]
            read = partial(file.read_row_group, group, columns=[column])
            yield from _column(read, self._decoders[number], column, file.metadata.row_group(group).num_rows)

    def _group(self, number: int) -> pa.Table:
        if self._loaded[0] != number:
            file, group = self._groups[number]
            self._loaded = (number, self._files[file].read_row_group(group))
        return self._loaded[1]


def _features(schema: pa.Schema, path: Path) -> Mapping[str, Any]:
    """What `datasets` wrote of the columns beside them; nothing where another tool wrote the file."""
    from datasets import Features

    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        return Features.from_arrow_schema(schema)
    except Exception as error:  # whatever datasets makes of a damaged or newer description
        raise ConfigurationError(
            f"source.options.path: {path} has features that cannot be read ({one_line(error)})"
        ) from error


def _decoder(features: Mapping[str, Any]) -> Decoder:
    """From a row as it is stored to one with names in place of the numbers of every `ClassLabel`, however deep."""
    name = _namer(dict(features))
    return (lambda row: row) if name is None else name


def _namer(feature: Any) -> Callable[[Any], Any] | None:
    from datasets import ClassLabel, LargeList, List

    if isinstance(feature, ClassLabel):
        return partial(_class_name, feature.names)
    if isinstance(feature, List | LargeList):
        name = _namer(feature.feature)
        return None if name is None else lambda values: None if values is None else [name(value) for value in values]
    if isinstance(feature, Mapping):
        namers = {key: name for key, inner in feature.items() if (name := _namer(inner)) is not None}
        return partial(_name_keys, namers) if namers else None
    return None


def _name_keys(namers: Mapping[str, Callable[[Any], Any]], value: Mapping[str, Any] | None) -> Any:
    if value is None:
        return None
    return {key: namers[key](inner) if key in namers else inner for key, inner in value.items()}


def _class_name(names: Sequence[str], number: int | None) -> str | None:
    """The name of a class; -1 is how `datasets` says that there is none."""
    if number is None or number == -1:
        return None
    if not 0 <= number < len(names):
        raise RecordError(f"class {number} is not among the {len(names)} names of its ClassLabel")
    return names[number]


def _column(read: Callable[[], pa.Table], decode: Decoder, column: str, count: int) -> Iterator[Any]:
    """One column of the rows that `read` gives; as many errors as rows where they cannot be read."""
    import pyarrow as pa

    try:
        rows = read().to_pylist()
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        yield from [RecordError(f"cannot be read: {one_line(error)}")] * count
        return
    for row in rows:
        try:
            yield decode(row).get(column)
        except RecordError as error:
            yield error


def _only_row(read: Callable[[], pa.Table], where: str) -> dict[str, Any]:
    """The row that `read` gives; a damaged one is one bad record."""
    import pyarrow as pa

    try:
        [row] = read().to_pylist()
    # ValueError: text that is no UTF-8, a date that Python has not, or no row where the file's index says that one is.
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise RecordError(f"{where} cannot be read: {one_line(error)}") from error
    found: dict[str, Any] = row
    return found


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - FOOTER_BYTES))
        return file.read()
