"""What a model is: a digest that another training changes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dopd_vl.resources import find_model

MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model")
_READ_AT_ONCE = 16 * 1024 * 1024


def digest_model(name: str, commit: str | None = None) -> str:
    """Of a local model's files, all of their bytes; of a hub model, its name and, where known, the commit."""
    folder = Path(find_model(name))
    if not folder.is_dir():
        return hashlib.sha256(f"{name}@{commit}".encode()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES):
        digest.update(repr((file.name, file.stat().st_size)).encode())
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_READ_AT_ONCE):
            yield block
