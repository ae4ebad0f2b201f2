"""Digests that notice other content without reading every byte of a large file."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopd_vl.common.resources import find_model

if TYPE_CHECKING:
    from datasets import Dataset

READ_WHOLE = 64 * 1024 * 1024
"""Bytes: a file up to this size is read whole."""
_BLOCK = 4096
_BLOCKS_OF_A_SPAN = 8
_PARTS = 512
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model")
"""Suffixes of what makes a model's folder the model that it is."""


def digest_file(file: Path) -> str:
    """Hex SHA-256 of a file's size and content: all of it up to `READ_WHOLE` bytes, samples of a larger one.

    Of a large safetensors file the header and eight blocks of 4 KiB of every tensor are read, so that training or
    merging, which move every tensor that they touch nearly everywhere, cannot go unnoticed; of any other large file
    512 equal parts, likewise. A 16 GB model takes some ten megabytes of reading. What is not noticed is a change of
    a few numbers of a large tensor, which no training makes.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with file.open("rb") as opened:
        if size <= READ_WHOLE:
            while block := opened.read(1024 * 1024):
                digest.update(block)
            return digest.hexdigest()
        spans = _tensors(file, size) or _equal_parts(size)
        for start, end in spans:
            for position in _positions(start, end):
                opened.seek(position)
                digest.update(opened.read(min(_BLOCK, end - position)))
    return digest.hexdigest()


def digest_model(name: str, commit: str | None = None) -> str:
    """Of a local model's files, all of their bytes; of a hub model, its name and, where known, the commit."""
    folder = Path(find_model(name))
    if not folder.is_dir():
        return hashlib.sha256(f"{name}@{commit}".encode()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES):
        digest.update(repr((file.name, file.stat().st_size)).encode())
        with file.open("rb") as opened:
            while block := opened.read(16 * 1024 * 1024):
                digest.update(block)
    return digest.hexdigest()


def model_parts(name: str, config: Any) -> dict[str, str]:
    """A digest of each file of a model folder; of a hub model its name, commit and `PreTrainedConfig`."""
    folder = Path(find_model(name))
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in (*MODEL_FILES, ".py"))
        return {f"file {path.name}": digest_file(path) for path in files if path.name != "training_args.bin"}
    return {"name": name, "commit": str(config._commit_hash), "configuration": digest_json(config.to_dict())}


def digest_json(value: Any) -> str:
    """Hex SHA-256 of anything that JSON can hold, whatever the order of its keys; other things as `str` has them."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """Of every byte of a file, as `sha256sum` prints it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


CHECKSUM = "checksum"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object for a JSON file or a line of one, with a checksum of the rest of it as its last key.

    >>> sealed({"step": 1})
    {'step': 1, 'checksum': '345e8505b47623e3'}
    """
    return {**value, CHECKSUM: _checksum(value)}


def unsealed(value: Any) -> dict[str, Any] | None:
    """What was sealed; None where it is no longer that. An object that never had a checksum is taken as it is.

    >>> unsealed({"step": 2, "checksum": "345e8505b47623e3"})
    """
    if not isinstance(value, dict):
        return None
    rest = {key: part for key, part in value.items() if key != CHECKSUM}
    return rest if value.get(CHECKSUM) in (None, _checksum(rest)) else None


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def dataset_parts(dataset: "Dataset") -> dict[str, Any]:
    """The number of examples, and a digest of each column's content; a column of nulls alone is as good as none."""
    digests = {name: hashlib.sha256() for name in dataset.column_names}
    filled = set()
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        for name, digest in digests.items():
            for chunk in batch[name].chunks:
                if chunk.null_count < len(chunk):
                    filled.add(name)
                if name == "images":
                    _add_images(digest, chunk)
                else:
                    for value in chunk.to_pylist():
                        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return {
        "number of examples": len(dataset),
        **{f"column {n}": d.hexdigest() for n, d in digests.items() if n in filled},
    }


def digest_image(value: bytes | memoryview) -> bytes:
    """Of an image's file: its length and content, of one above 64 KiB its length and both ends.

    The end of a PNG holds a checksum of all of its pixels; a JPEG changed in its middle has other lengths and a
    shifted rest.
    """
    digest = hashlib.sha256(f"{len(value)}\n".encode())
    for part in (value,) if len(value) <= 16 * _BLOCK else (value[: 8 * _BLOCK], value[-8 * _BLOCK :]):
        digest.update(part)
    return digest.digest()


def _add_images(digest: Any, lists: Any) -> None:
    # Through arrow's own buffers: of a large image only the pages that are looked at are read from the disk.
    for images in lists:
        digest.update(b"none\n" if not images.is_valid else f"{len(images)}\n".encode())
        for image in images.values if images.is_valid else ():
            content, path = image["bytes"], image["path"]
            if content.is_valid:
                digest.update(digest_image(memoryview(content.as_buffer())))
            else:
                digest.update(f"{path.as_py()}\n".encode())


def _positions(start: int, end: int) -> Iterator[int]:
    """Where blocks begin, the first at the start of a span and the last at its end."""
    last = max(start, end - _BLOCK)
    return (start + (last - start) * block // (_BLOCKS_OF_A_SPAN - 1) for block in range(_BLOCKS_OF_A_SPAN))


def _equal_parts(size: int) -> list[tuple[int, int]]:
    return [(size * part // _PARTS, size * (part + 1) // _PARTS) for part in range(_PARTS)]


def _tensors(file: Path, size: int) -> list[tuple[int, int]]:
    """Header and tensors of a safetensors file, as (start, end); none where the header is not sound."""
    if file.suffix != ".safetensors":
        return []
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > size - 8:
            return []
        try:
            header = json.loads(opened.read(length))
            offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            spans = [(8 + length + int(start), 8 + length + int(end)) for start, end in offsets]
        except (ValueError, TypeError, KeyError, AttributeError):
            return []
    return [(0, 8 + length), *sorted(span for span in spans if span[1] <= size)]
