"""Where raw records come from. `SOURCES` maps a kind to a factory that takes the options of a config.

A raw record is whatever `records.parse_record` can judge; a source neither checks nor repairs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dopd_vl.common.configuration import check_choice, existing_path, settings_of
from dopd_vl.common.errors import ConfigurationError, RecordError, nearest
from privileged.audit.audit import Tally
from privileged.records.fields import MAX_ID, unique_keys
from privileged.schema import COLUMNS, MEASURED, PRIVILEGED_KEYS
from privileged.sources.coco import CocoOptions, CocoSource
from privileged.sources.conversations import ConversationTable
from privileged.sources.detection import VocSource, YoloSource
from privileged.sources.label_studio import LabelStudioOptions, LabelStudioTable
from privileged.sources.objects import ObjectTable
from privileged.sources.tables import Numbered, ParquetRows, Rows, hub_rows, saved_rows

MAX_LINE = 64 * 1024 * 1024
MAX_VALUES = 4_000_000
"""Bytes of a line, and values in it: an empty list of two bytes takes sixty in memory."""
PIECE = 1024 * 1024

MAPPABLE = (
    *(column for column in COLUMNS if column not in MEASURED),
    "image_sizes",
    *(f"privileged.{key}" for key in PRIVILEGED_KEYS),
)
"""What the option `columns` may fill."""

NEEDED = ("prompt", "answer")
INCIDENTAL = ("id", "source", "task", "image_sizes")
"""What the data may lack although their card, written for another revision, names it."""

MAX_NAMES = 200
"""Names of columns that are kept for a message."""

_MISSING = object()


@dataclass
class SourceConfig:
    """Where the records come from: a kind of source, or a card that knows how a data set is read.

    Args:
        kind: The kind of source: "jsonl", "dataset", "hub", "coco", "yolo", "voc", "label-studio" or "nano". With a
            card it takes the place of the card's own kind.
        options: What this kind of source needs (docs/sources.md).
        name: The value of the column `source` for records that have none. By default it is the source's own name.
        default_task: The task, and so the verifier, of records that name none: exact, number, choice, math, code, boxes
            or open. By default such records are set aside.
        box_format: How boxes are given: xyxy or xywh in pixels, xyxy_1 or xywh_1 as shares of the image, or xyxy_1000.
        card: The source card: one of those that ship (docs/sources.md), or the path of a YAML file.
    """

    kind: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    default_task: str | None = None
    box_format: str = "xyxy"
    card: str | None = None


class Source(Numbered, Protocol):
    """Records by number."""

    name: str


SourceFactory = Callable[..., Source]
"""Makes a source from the options of a config. Those of `COLUMN_KINDS` take as `optional` which of our columns the data
may lack although the options name theirs."""


@runtime_checkable
class ImageFolderSource(Protocol):
    """A source whose image paths are relative to a folder, which they may not leave."""

    image_root: Path | None


@runtime_checkable
class CountingSource(Protocol):
    """A source that counts what it left out or mended when it was opened, under findings of the audit."""

    found: Tally


@dataclass
class JsonlOptions:
    """One JSON object a line, or one array of them.

    Args:
        path: The file. One array is what a file is read as whose name ends in .json and that begins with a bracket.
        images: The folder that image paths are relative to. Default: the file's folder.
        columns: Which of the file's columns fills which of ours, e.g. {prompt: question, answer: solution,
            privileged.hints: steps}; a dot walks into a nested mapping.
        turns: What fills `prompt` are conversations, of which "each", the "first" or the "last" reply is a record.
    """

    path: str
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    turns: str | None = None


def jsonl_source(options: Mapping[str, Any], optional: Collection[str] = ()) -> Source:
    """A file of JSON objects, or the replies of the conversations in them."""
    table = JsonlSource(options, optional)
    turns = settings_of(JsonlOptions, options, "source.options").turns
    return table if turns is None else ConversationTable(table, turns)


class JsonlSource:
    """A JSONL file, or a JSON array. Only where its records are is held in memory."""

    def __init__(self, options: Mapping[str, Any], optional: Collection[str] = ()):
        self._options = settings_of(JsonlOptions, options, "source.options")
        self._path = existing_path(self._options.path, "source.options.path", "file")
        self.name = self._path.stem
        self.image_root: Path | None = self._path.parent
        if self._options.images is not None:
            self.image_root = existing_path(self._options.images, "source.options.images", "folder")
        self._columns = check_columns(self._options.columns)
        self._index = _index_array(self._path) if _is_array(self._path) else _index_lines(self._path)
        refuse_absent(self._columns, self.readable(), optional)

    def fingerprint(self) -> str:
        return f"jsonl:{self._index.digest}"

    def __len__(self) -> int:
        return len(self._index.starts)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return map_columns(self._row(index), self._columns)

    def readable(self) -> Iterator[dict[str, Any]]:
        """The records that can be read, as they are in the file."""
        for index in range(len(self)):
            with contextlib.suppress(RecordError):
                yield self._row(index)

    def values(self, target: str) -> Iterator[Any]:
        """One of our columns for every record; RecordErrors as of `Rows`."""
        for index in range(len(self)):
            try:
                found = _look_up(self._row(index), self._columns.get(target, target))
                yield None if found is _MISSING else found
            except RecordError as error:
                yield error

    def _row(self, index: int) -> dict[str, Any]:
        unit = "line" if self._index.ends is None else "entry"
        where = f"{unit} {self._index.numbers[index]} of {self._path.name}"
        start = self._index.starts[index]
        with self._path.open("rb") as file:
            file.seek(start)
            if self._index.ends is None:
                line = file.readline(MAX_LINE + 1)
            else:
                line = file.read(min(self._index.ends[index] - start, MAX_LINE + 1))
        if len(line) > MAX_LINE:
            raise RecordError(f"{where} is longer than {MAX_LINE} bytes")
        if sum(line.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
            raise RecordError(f"{where} has more than the {MAX_VALUES} commas and brackets allowed")
        try:
            row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique_keys)
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise RecordError(f"{where} is a {type(row).__name__}, no JSON object")
        return row


class Index(NamedTuple):
    """Where in a file its records are, and which line or entry each is; in an array also where each ends."""

    starts: array[int]
    numbers: array[int]
    digest: str
    ends: array[int] | None = None


def _is_array(path: Path) -> bool:
    """A file of lines may be called .json too, but no line of it is an array."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".json" and file.read(PIECE).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|' + _TEXT + rb")*+([\[\]{},])", re.DOTALL)
_WITHIN = re.compile(rb'(?:[^"\[\]{}]++|' + _TEXT + rb")*+([\[\]{}])", re.DOTALL)
"""Up to the next bracket, and outside of entries comma, that is in no text. Nothing is tried twice."""


def _index_array(path: Path) -> Index:
    where = f"source.options.path: {path}"
    starts, ends = array("Q"), array("Q")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        depth = position = start = 0
        while match := (_WITHIN if depth > 1 else _BETWEEN).match(data, position):
            position = match.end()
            sign = match[1]
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(sign, 0)
            if depth == 1 and sign == b"[" and not start:
                start = position
            elif depth == 0 or (depth == 1 and sign == b","):
                if sign == b"," or data[start : position - 1].strip():  # no entry, or none after the last comma
                    starts.append(start)
                    ends.append(position - 1)
                start = position
            if depth == 0:
                break
        if depth:
            raise ConfigurationError(
                f"{where} begins an array that does not end, after {len(starts)} entries; is it whole?"
            )
        if data[position:].strip():
            raise ConfigurationError(f"{where} goes on after its array, at byte {position}")
        digest = hashlib.sha256(data).hexdigest()
    return Index(starts, array("Q", range(1, len(starts) + 1)), digest, ends)


def _index_lines(path: Path) -> Index:
    starts, numbers = array("Q"), array("Q")
    digest = hashlib.sha256()
    position = 0
    with path.open("rb") as file:
        number, at_start = 1, True
        # A line may be longer than memory allows: it is read in pieces, of which only the first begins a record.
        while piece := file.readline(PIECE):
            digest.update(piece)
            if at_start and (piece.strip(b"\xef\xbb\xbf \t\r\n") or len(piece) == PIECE):
                starts.append(position)
                numbers.append(number)
            position += len(piece)
            at_start = piece.endswith(b"\n")
            number += at_start
    return Index(starts, numbers, digest.hexdigest())


@dataclass
class DatasetOptions:
    """A Hugging Face dataset on this machine.

    Args:
        path: A folder written by `save_to_disk`, a parquet file, or a folder of parquet files.
        config: Which configuration of a folder of parquet files, where there are several: by the folder's README, or
            a sub-folder.
        split: Which split, where there are several.
        images: The folder that image paths are relative to, for datasets that hold paths and not the images.
        columns: As for jsonl.
        questions: A list of settings of `questions.Question`, asked of the objects that `privileged.boxes` is filled
            with.
        class_names: The names of those objects' categories, where they are numbers without names.
        turns: As for jsonl.
    """

    path: str
    config: str | None = None
    split: str | None = None
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    questions: list[Any] = field(default_factory=list)
    class_names: list[str] | None = None
    turns: str | None = None


def dataset_source(options: Mapping[str, Any], optional: Collection[str] = ()) -> Source:
    """A dataset saved on disk, or parquet files read one row group at a time."""
    given = settings_of(DatasetOptions, options, "source.options")
    path = existing_path(given.path, "source.options.path", "file or folder")
    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if saved and given.config is not None:
        raise ConfigurationError(f"source.options.config: {path} was saved without configurations; leave it out")
    table = TableSource(
        path.stem,
        given,
        lambda: saved_rows(path, given.split) if saved else ParquetRows(path, given.config, given.split),
        optional,
    )
    return _expanded(table, given)


@dataclass
class HubOptions:
    """A Hugging Face dataset by its id, downloaded into the Hugging Face cache.

    Args:
        id: "owner/name". Only ids that you write here are ever downloaded, and no code of theirs is run.
        revision: A commit or tag; without one, whatever is newest.
        config: The configuration, where the dataset has several.
        split: Which split, where there are several.
        images, columns, questions, class_names, turns: As for dataset.
    """

    id: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    images: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    questions: list[Any] = field(default_factory=list)
    class_names: list[str] | None = None
    turns: str | None = None


def hub_source(options: Mapping[str, Any], optional: Collection[str] = ()) -> Source:
    """A dataset of the Hugging Face hub, memory-mapped from the cache."""
    given = settings_of(HubOptions, options, "source.options")
    rows = partial(hub_rows, given.id, given.revision, given.config, given.split)
    table = TableSource(given.id, given, rows, optional)
    return _expanded(table, given)


def _expanded(table: TableSource, given: DatasetOptions | HubOptions) -> Source:
    """The rows as they are, or the records that are made of each."""
    if given.questions and given.turns is not None:
        raise ConfigurationError("source.options.turns: is for conversations, and questions are for objects; name one")
    if given.turns is not None:
        return ConversationTable(table, given.turns)
    return ObjectTable(table, given.questions, given.class_names) if given.questions else table


class TableSource:
    """Rows of a table, with our columns filled from its own."""

    def __init__(
        self,
        name: str,
        options: DatasetOptions | HubOptions,
        rows: Callable[[], Rows],
        optional: Collection[str] = (),
    ):
        self.name = name
        self.image_root: Path | None = None
        if options.images is not None:
            self.image_root = existing_path(options.images, "source.options.images", "folder")
        self._columns = check_columns(options.columns)
        self._rows = rows()  # last: a wrong option is told of before anything is read or downloaded
        nested = {}
        for target, column in self._columns.items():
            top = column.partition(".")[0]
            if top in self._rows.columns and column not in self._rows.columns:
                nested[target] = column
        plain = {target: column for target, column in self._columns.items() if target not in nested}
        refuse_absent(plain, [dict.fromkeys(self._rows.columns)], optional)
        for target, column in nested.items():
            top = column.partition(".")[0]
            values = (value for value in self._rows.values(top) if not isinstance(value, RecordError))
            refuse_absent({target: column}, ({top: value} for value in values), optional)

    def fingerprint(self) -> str:
        return self._rows.fingerprint()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return map_columns(self._rows[index], self._columns)

    def values(self, target: str) -> Iterator[Any]:
        """One of our columns for every row, without reading those that do not fill it; RecordErrors as of `Rows`."""
        column = self._columns.get(target, target)
        top = column if column in self._rows.columns else column.partition(".")[0]
        if top not in self._rows.columns:
            raise ConfigurationError(f"source.options.columns.{target}: name the column of the data that fills it")
        for value in self._rows.values(top):
            found = value if isinstance(value, RecordError) else _look_up({top: value}, column)
            yield None if found is _MISSING else found


def check_columns(columns: Mapping[str, str], where: str = "source.options.columns") -> dict[str, str]:
    for target in columns:
        check_choice(target, MAPPABLE, f"{where}.{target}")
    return dict(columns)


def refuse_absent(
    columns: Mapping[str, str],
    rows: Iterable[Mapping[str, Any]],
    optional: Collection[str] = (),
    where: str = "source.options.columns",
) -> None:
    """Raise ConfigurationError for a column that the settings name and no row has. Rows are read until all are found.

    Args:
        optional: Which of our columns may stay empty.
        where: The setting below which the columns are named.
    """
    absent = {target: column for target, column in columns.items() if target not in optional}
    names: dict[str, None] = {}
    for row in rows if absent else ():
        absent = {target: column for target, column in absent.items() if _look_up(row, column) is _MISSING}
        if not absent:
            return
        if len(names) < MAX_NAMES:
            names |= dict.fromkeys(_names(row))
    for target, column in absent.items() if names else ():
        raise ConfigurationError(f"{where}.{target}: the data has no column {column!r}; {nearest(column, names)}")


def _names(row: Mapping[str, Any]) -> Iterator[str]:
    """The names of a row's columns, and of those one level below as `columns` has them."""
    for key, value in islice(row.items(), MAX_NAMES):
        yield key[:MAX_ID]
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}"[:MAX_ID] for inner in islice(value, MAX_NAMES))


def map_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with our columns filled from the source's. What a record can do without may be missing.

    >>> map_columns({"question": "2+2?", "meta": {"key": 4}}, {"prompt": "question", "answer": "meta.key"})["answer"]
    4
    >>> map_columns({"question": "2+2?"}, {"prompt": "qestion"})
    Traceback (most recent call last):
    dopd_vl.common.errors.RecordError: prompt: there is no column 'qestion'; did you mean 'question'?
    """
    filled = {target: _look_up(row, column) for target, column in columns.items()}
    for target in NEEDED:
        if filled.get(target) is _MISSING:
            column = columns[target]
            raise RecordError(f"{target}: there is no column {column!r}; {nearest(column, map(str, row))}")
    return {**row, **{target: None if value is _MISSING else value for target, value in filled.items()}}


def _look_up(row: Any, column: str) -> Any:
    if not isinstance(row, Mapping):
        return _MISSING
    if column in row:
        return row[column]
    head, dot, rest = column.partition(".")
    return _look_up(row.get(head), rest) if dot else _MISSING


def coco_source(options: Mapping[str, Any]) -> Source:
    """COCO annotations, asked about by templates, by questions of one's own, or by both."""
    given = settings_of(CocoOptions, options, "source.options")
    if given.questions_file is None:
        if given.columns:
            raise ConfigurationError("source.options.columns: are those of questions_file, which is not set")
        return CocoSource(options)
    path = existing_path(given.questions_file, "source.options.questions_file", "file")
    return CocoSource(options, JsonlSource({"path": str(path), "columns": given.columns}))


def label_studio_source(options: Mapping[str, Any]) -> Source:
    """An export of Label Studio, its boxes asked about."""
    given = settings_of(LabelStudioOptions, options, "source.options")
    path = existing_path(given.export, "source.options.export", "file")
    folder = existing_path(given.images, "source.options.images", "folder")
    tasks = JsonlSource({"path": str(path)})
    refuse_absent({"image": f"data.{given.image}"}, tasks.readable(), where="source.options")
    table = LabelStudioTable(tasks, path.stem, folder, given)
    source = ObjectTable(table, given.questions, None)
    source.found.add(table.found.to_dict())
    return source


SOURCES: dict[str, SourceFactory] = {
    "jsonl": jsonl_source,
    "dataset": dataset_source,
    "hub": hub_source,
    "coco": coco_source,
    "yolo": YoloSource,
    "voc": VocSource,
    "label-studio": label_studio_source,
}
"""Every kind of source that needs nothing from outside; `prepare` takes more as `extra_sources`."""
