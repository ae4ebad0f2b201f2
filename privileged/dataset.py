"""A prepared folder, as a `datasets.Dataset`."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dopd_vl.common.errors import ConfigurationError, PrepareError, RecordError, one_line
from dopd_vl.common.files import DISK_TROUBLE
from privileged.records.fields import chat_message, item_list
from privileged.schema import MEASURED, TASKS, Example, empty_privileged, features

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = "privileged-dataset-1"
DATA_FOLDER = "data"
AUDIT_FILE = "audit.json"
CARD_FILE = "README.md"
INFO_FILE = "dataset_info.json"
REJECTED_FILE = "rejected.jsonl"
DROPPED_FILE = "dropped.jsonl"
WORK_FOLDER = ".prepare"
PREPARE_COMMAND = "dopd-vl prepare --config ..."
AGAIN = "prepare it again with overwrite: true"


def read_audit(folder: Path) -> dict[str, Any] | None:
    """The audit of a complete folder; None when the folder is not a complete one.

    The card and the audit are written last, so both together are the sign of completeness.
    """
    if not (folder / CARD_FILE).is_file() or not (folder / AUDIT_FILE).is_file():
        return None
    try:
        audit = json.loads((folder / AUDIT_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return audit if isinstance(audit, dict) and audit.get("format") == FORMAT and _names_its_files(audit) else None


def _names_its_files(audit: Mapping[str, Any]) -> bool:
    names, records = audit.get("files"), audit.get("records")
    # Plain names: the audit of a folder from elsewhere must not lead out of it.
    named = isinstance(names, list) and all(isinstance(n, str) and n == Path(n).name and "\0" not in n for n in names)
    return named and isinstance(records, int)


def load_privileged(folder: str | Path, cache_dir: str | None = None) -> Dataset:
    """The rows of a folder that `prepare` finished, images as the Image feature.

    datasets keeps a memory-mapped copy in its cache (`cache_dir`, or the environment's HF_HOME).

    Raises:
        PrepareError: there is no such folder, it is unfinished, files are missing or damaged, its columns are not
            ours, or the cache cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PrepareError(f"{folder}: no such folder; make it with `{PREPARE_COMMAND}`")
    audit = read_audit(folder)
    if audit is None:
        if (folder / WORK_FOLDER).is_dir():
            raise PrepareError(f"{folder}: its preparation is unfinished; run the same `{PREPARE_COMMAND}` again")
        raise PrepareError(f"{folder}: no privileged dataset ({AUDIT_FILE} or {CARD_FILE} missing or not ours)")
    files = [folder / DATA_FOLDER / name for name in audit["files"]]
    for file in files:
        if not file.is_file():
            raise PrepareError(f"{file}: missing; {AGAIN}")
        _check_columns(file)

    from datasets import Dataset
    from datasets.config import HF_DATASETS_CACHE
    from datasets.exceptions import DatasetGenerationError

    try:
        dataset = Dataset.from_parquet(
            [glob.escape(str(file)) for file in files], features=features(), cache_dir=cache_dir
        )
    except (DatasetGenerationError, OSError, ValueError) as error:
        cause, cache = error.__cause__ or error, Path(cache_dir or HF_DATASETS_CACHE).expanduser()
        if isinstance(cause, OSError) and _is_of_the_cache(cause, cache):
            raise PrepareError(
                f"{cache}: the cache of datasets cannot be written ({cause.strerror}); make room there, or name "
                "another folder in the environment variable HF_DATASETS_CACHE"
            ) from error
        raise PrepareError(f"{folder}: its data cannot be read ({one_line(cause)}); {AGAIN}") from error
    assert isinstance(dataset, Dataset)
    if len(dataset) != audit["records"]:
        raise PrepareError(f"{folder}: holds {len(dataset)} rows, its audit counted {audit['records']}; {AGAIN}")
    return dataset


DataT = TypeVar("DataT")


def without_privilege(dataset: DataT, task: str = "open") -> DataT:
    """A data set of prompts, with columns as TRL's trainers take them, as a privileged one whose teachers see no more.

    >>> from datasets import Dataset
    >>> without_privilege(Dataset.from_dict({"prompt": ["2 + 2?"], "answer": ["4"]}), task="number")[0]["prompt"]
    [{'role': 'user', 'content': '2 + 2?'}]

    Args:
        dataset: a `Dataset`, an `IterableDataset`, or a dictionary of them. `prompt` is text, which becomes a user
            message, or messages; without it `messages` are taken up to the last one, of the assistant. `image` or
            `images` are shown (a stream keeps them encoded); columns `id` and `source` are kept. The answer is the
            column `answer`, else the text of `completion` or of the last of `messages`, else none.
        task: the verifier that scores answers (`privileged.schema.TASKS`); "open" scores none.

    Raises:
        ConfigurationError: there is no such verifier or no prompt.
        RecordError: a prompt cannot be used; the message has the number of its row.
    """
    from datasets import Image, List

    from dopd_vl.common.configuration import check_choice

    if isinstance(dataset, dict):
        return cast(DataT, type(dataset)({name: without_privilege(part, task) for name, part in dataset.items()}))
    check_choice(task, TASKS, "task")
    given = cast("Dataset", dataset)
    names = list(given.column_names or next(iter(given), {}))
    if not {"prompt", "messages"} & set(names):
        raise ConfigurationError(f"dataset: has neither prompt nor messages, but {', '.join(names)}")
    for name, encoded in (("image", Image(decode=False)), ("images", List(Image(decode=False)))):
        if name in names and given.features is not None:  # images go over as they are, none is decoded
            given = given.cast_column(name, encoded)

    def row(example: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        try:
            return _row_without_privilege(example, number, task)
        except RecordError as error:
            raise RecordError(f"row {number}: {error}") from error

    return cast(DataT, given.map(row, with_indices=True, remove_columns=names, features=features()))


def _row_without_privilege(example: Mapping[str, Any], number: int, task: str) -> Example:
    prompt, answer = example.get("prompt"), example.get("completion")
    if prompt is None:
        *prompt, answer = item_list(example.get("messages"), "messages")
        answer = [answer]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if answer is not None and not isinstance(answer, str):
        answer = chat_message(item_list(answer, "completion")[-1], 1)["content"]
    if example.get("answer") is not None:
        answer = str(example["answer"])
    image = example.get("image")
    return Example(
        id=str(example.get("id", number)),
        prompt=[chat_message(message, place) for place, message in enumerate(item_list(prompt, "prompt"))],
        images=example.get("images") or ([] if image is None else [image]),
        answer=answer or "",
        task=task,
        source=str(example.get("source") or "prompts"),
        privileged=empty_privileged(),
        illusion_score=None,
    )


def _is_of_the_cache(error: OSError, cache: Path) -> bool:
    """Nothing but the cache is written while a folder is loaded; of what is read, the error names the file."""
    if error.filename is None:
        return error.errno in DISK_TROUBLE
    path = Path(os.fsdecode(error.filename))
    return path.is_relative_to(cache) or cache.is_relative_to(path)


def _check_columns(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = features().arrow_schema
    try:
        found = pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a column's name is no UTF-8
        raise PrepareError(f"{file}: cannot be read ({one_line(error)}); {AGAIN}") from error
    # Sets of before anything was measured are whole without such columns, which are read as null.
    needed = pa.schema([column for column in expected if column.name in found.names or column.name not in MEASURED])
    if not found.equals(needed):
        missing = sorted(set(needed.names) - set(found.names))
        what = f"lacks the columns {', '.join(missing)}" if missing else "has columns of other types"
        raise PrepareError(f"{file}: {what}; it is no privileged dataset of this version")
