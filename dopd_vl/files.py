"""Files that are never half-written: the old one stays until the whole new one takes its place."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dopd_vl.errors import UserError
from privileged.errors import DISK_TROUBLE
from privileged.journal import write_atomically


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of one JSON object a line."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, each a line, and see them on disk."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_up_to(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that a run goes on from."""
    if path.exists():
        write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])


def sync_folder(folder: Path) -> None:
    """See everything in a folder on disk: after a power cut, a mark that it is whole tells the truth."""
    for path in [*sorted(folder.rglob("*")), folder]:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def disk_told_of(folder: Path, what_stays: str) -> Iterator[None]:
    """A folder that cannot be written (full, read-only, gone) ends the work with one line that says so.

    Raises:
        UserError: in place of what the operating system, torch or safetensors said; `what_stays` ends its message.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_trouble(error, folder)
        if reason is None:
            raise
        raise UserError(f"{folder}: cannot be written ({reason}); {what_stays}") from error


def _disk_trouble(error: Exception, folder: Path) -> str | None:
    """Why nothing could be written; None where the error is of another kind."""
    if isinstance(error, OSError):
        ours = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(folder)
        return error.strerror if ours or error.errno in DISK_TROUBLE else None
    # safetensors and torch's file writer name the cause, where they do, in their text alone.
    text = str(error)
    for number in DISK_TROUBLE:
        if f"os error {number})" in text:
            return os.strerror(number)
    if isinstance(error, RuntimeError) and ("inline_container.cc" in text or "PytorchStreamWriter" in text):
        return f"torch could not write a whole file; {_room(folder)}"
    return None


def _room(folder: Path) -> str:
    try:
        space = os.statvfs(folder)
    except OSError as error:
        return str(error.strerror)
    return f"{space.f_bavail * space.f_frsize / 1e9:.2f} GB free"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file; a last line cut short by a crash is left out. Empty where there is no file."""
    if not path.exists():
        return []
    rows = []
    # Not splitlines: a model may say U+2028 or U+0085, which JSON leaves in a string as they are.
    for line in path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
