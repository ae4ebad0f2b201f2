"""A prepared folder, as a `datasets.Dataset`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dopd_vl.common.digests import CHECKSUM, digest_file, digest_json, sha256_of, unsealed
from dopd_vl.common.errors import ConfigurationError, PrepareError, RecordError, one_line
from dopd_vl.common.files import DISK_TROUBLE, read_json
from privileged.records.fields import chat_message, item_list
from privileged.schema import MEASURED, TASKS, Example, empty_privileged, features

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = "privileged-dataset-1"
DATA_FOLDER = "data"
AUDIT_FILE = "audit.json"
CARD_FILE = "README.md"
CARD_BEGINS = "---\nconfigs:\n- config_name: default\n  description: rows "
"""The front matter of our cards, up to the digest of the rows."""
INFO_FILE = "dataset_info.json"
REJECTED_FILE = "rejected.jsonl"
DROPPED_FILE = "dropped.jsonl"
WORK_FOLDER = ".prepare"
PREPARE_COMMAND = "dopd-vl prepare --config ..."
AGAIN = "prepare it again with overwrite: true"


def read_audit(folder: Path) -> dict[str, Any] | None:
    """The audit of a complete folder; None when the folder is not a complete one, or its audit was damaged.

    The card and the audit are written last, so both together are the sign of completeness.
    """
    if not (folder / CARD_FILE).is_file() or not (folder / AUDIT_FILE).is_file():
        return None
    audit = read_json(folder / AUDIT_FILE)
    if audit is None or audit.get("format") != FORMAT or unsealed(audit) is None:
        return None
    return audit if _names_its_files(audit) else None


def _names_its_files(audit: Mapping[str, Any]) -> bool:
    names, records, digests = audit.get("files"), audit.get("records"), audit.get("digests", {})
    # Plain names: the audit of a folder from elsewhere must not lead out of it.
    named = isinstance(names, list) and all(map(_is_plain, names)) and isinstance(digests, dict)
    # What has digests has a checksum, unless it was damaged there.
    kept = not digests or (CHECKSUM in audit and all(_is_plain(n.removeprefix(f"{DATA_FOLDER}/")) for n in digests))
    return named and kept and isinstance(records, int)


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name == Path(name).name and "\0" not in name


def damaged_file(folder: Path, audit: Mapping[str, Any], data_only: bool = False) -> Path | None:
    """The first file of a prepared folder that is missing or not what was written, every byte of it; None if all are.

    Of sets of before their audits named digests only the data is known, and that as a whole.
    """
    digests = audit.get("digests")
    if digests is None:
        files = [folder / DATA_FOLDER / name for name in audit["files"]]
        missing = next((file for file in files if not file.is_file()), None)
        changed = "digest" in audit and digest_json([sha256_of(file) for file in files]) != audit["digest"]
        return missing or (folder / DATA_FOLDER if changed else None)
    for name, digest in digests.items():
        if not data_only or name.startswith(f"{DATA_FOLDER}/"):
            file = folder / name
            if not file.is_file() or sha256_of(file) != digest:
                return file
    return None


def load_privileged(folder: str | Path, cache_dir: str | None = None) -> Dataset:
    """The rows of a folder that `prepare` finished, images as the Image feature.

    datasets keeps a memory-mapped copy in its cache (`cache_dir`, or the environment's HF_HOME), which is known by the
    content of what it is a copy of. Before it is made, every byte of the data is compared with its digest.

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
        if is_prepared(folder):
            raise PrepareError(f"{folder}: {AUDIT_FILE} or {CARD_FILE} is missing or damaged; {AGAIN}")
        raise PrepareError(f"{folder}: no privileged dataset ({AUDIT_FILE} or {CARD_FILE} missing or not ours)")
    files = [folder / DATA_FOLDER / name for name in audit["files"]]
    for file in files:
        if not file.is_file():
            raise PrepareError(f"{file}: missing; {AGAIN}")
        _check_columns(file)

    from datasets import Dataset
    from datasets.config import HF_DATASETS_CACHE
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.exceptions import DatasetGenerationError
    from datasets.io.parquet import ParquetDatasetReader

    # What datasets knows its copy by: a name and a time alone may be those of a set that was here before. Given so,
    # names are not read as patterns either.
    content = audit.get("digest") or digest_json([digest_file(file) for file in files])
    known = DataFilesList(
        [str(file.absolute()) for file in files], [(str(f.stat().st_mtime_ns), content) for f in files]
    )
    try:
        reader = ParquetDatasetReader(
            DataFilesDict(train=known), split="train", features=features(), cache_dir=cache_dir
        )
        copied = Path(reader.builder.cache_dir).is_dir()
        if not copied and (damaged := damaged_file(folder, audit, data_only=True)) is not None:
            raise PrepareError(f"{damaged}: is not what was prepared; {AGAIN}")
        dataset = reader.read()
    except (DatasetGenerationError, OSError, ValueError) as error:
        if isinstance(error, PrepareError):
            raise
        cause, cache = error.__cause__ or error, Path(cache_dir or HF_DATASETS_CACHE).expanduser()
        if isinstance(cause, OSError) and _is_of_the_cache(cause, cache):
            raise PrepareError(
                f"{cache}: the cache of datasets cannot be written ({cause.strerror}); make room there, or name "
                "another folder in the environment variable HF_DATASETS_CACHE"
            ) from error
        raise PrepareError(f"{folder}: its data cannot be read ({one_line(cause)}); {AGAIN}") from error
    assert isinstance(dataset, Dataset)
    if not copied and read_audit(folder) != audit:
        shutil.rmtree(reader.builder.cache_dir, ignore_errors=True)  # perhaps of both
        raise PrepareError(f"{folder}: was prepared anew while it was read; run the same command again")
    if len(dataset) != audit["records"]:
        raise PrepareError(f"{folder}: holds {len(dataset)} rows, its audit counted {audit['records']}; {AGAIN}")
    dataset.info.dataset_name = folder.resolve().name
    return dataset


def is_prepared(folder: Path) -> bool:
    """Whether a folder is or was one of ours, by its card or its audit, whatever befell the other."""
    for name, sign in ((CARD_FILE, CARD_BEGINS), (AUDIT_FILE, FORMAT)):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                if sign.encode() in file.read(1024):
                    return True
    return False


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
