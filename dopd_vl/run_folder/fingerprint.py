"""What a run began with: its data, column by column, and its models, file by file.

A run that goes on is compared with it, so that a change is refused by name and not trained on.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedConfig

from dopd_vl.common.digests import MODEL_FILES, digest_file, digest_value
from dopd_vl.common.resources import find_model

FORMAT = "run-fingerprint-1"

Fingerprint = dict[str, Any]
"""Key of the configuration -> {part: its digest or count}"""


def fingerprint_of(
    datasets: Mapping[str, Dataset], models: Mapping[str, tuple[str, PreTrainedConfig]], processes: int
) -> Fingerprint:
    """Of data sets by key ("data.train"), of models by key ("model.student") with their names and configurations.

    `processes`: how many train together; with another number a step has other rollouts.
    """
    return {
        "format": FORMAT,
        **{key: dataset_parts(dataset) for key, dataset in datasets.items()},
        **{key: model_parts(name, config) for key, (name, config) in models.items()},
        "the launch": {"number of processes": processes},
    }


def dataset_parts(dataset: Dataset) -> dict[str, Any]:
    """The number of examples, and a digest of each column's content."""
    digests = {name: hashlib.sha256() for name in dataset.column_names}
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        for name, digest in digests.items():
            for chunk in batch[name].chunks:
                if name == "images":
                    _add_images(digest, chunk)
                else:
                    for value in chunk.to_pylist():
                        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return {"number of examples": len(dataset), **{f"column {n}": d.hexdigest() for n, d in digests.items()}}


def _add_images(digest: Any, lists: pa.ListArray) -> None:
    # Through arrow's own buffers: of a large image only the pages that are looked at are read from the disk.
    for images in lists:
        digest.update(b"none\n" if not images.is_valid else f"{len(images)}\n".encode())
        for image in images.values if images.is_valid else ():
            content, path = image["bytes"], image["path"]
            if content.is_valid:
                digest.update(digest_value(memoryview(content.as_buffer())))
            else:
                digest.update(f"{path.as_py()}\n".encode())


def model_parts(name: str, config: PreTrainedConfig) -> dict[str, str]:
    """A digest of each file of a model folder; of a hub model its name, commit and configuration."""
    folder = Path(find_model(name))
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if _is_of_the_model(path))
        return {f"file {path.name}": digest_file(path) for path in files}
    described = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return {
        "name": name,
        "commit": str(config._commit_hash),
        "configuration": hashlib.sha256(described.encode()).hexdigest(),
    }


def _is_of_the_model(path: Path) -> bool:
    return path.is_file() and path.suffix in (*MODEL_FILES, ".py") and path.name != "training_args.bin"


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What changed, in words that begin with its key; None where nothing did."""
    told = []
    for key in sorted({*before, *now} - {"format"}):
        old, new = before.get(key, {}), now.get(key, {})
        changed = [part for part in sorted({*old, *new}) if old.get(part) != new.get(part)]
        counts = [part for part in changed if part.startswith("number")]
        if counts:
            told.append(f"{key}: the {counts[0]} was {old.get(counts[0])} and is {new.get(counts[0])} now")
        elif changed:
            told.append(f"{key}: other content now ({', '.join(_told(part, old, new) for part in changed)})")
    return "; ".join(told) or None


def _told(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return f"{part} {'changed' if part in old and part in new else 'is new' if part in new else 'is gone'}"
