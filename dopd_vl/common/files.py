"""Files that are never half-written: the old one stays until the whole new one takes its place."""

import errno
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What the system says when it is the disk that cannot be written, and not the file."""
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
"""What it says of a path that cannot be used, whatever is done with it."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file: readers see the old content or the new, even after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode("utf-8"))
        commit_file(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()  # on a full disk it takes room
        raise


def commit_file(temporary: Path, final: Path) -> None:
    """Put a finished file in its place: its content reaches the disk before its name does."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def exclusive(folder: Path, work: str) -> Iterator[int]:
    """Only one piece of work at a time writes to a folder. The lock goes with the process, however that ends.

    Yields the descriptor that holds it: a child process that inherits it holds the lock too.

    Raises:
        UserError: another process holds it; `work` says what that is doing.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"{folder}: another {work} is writing here; wait for it, or stop it") from error
    except OSError:
        # Some network file systems have no locks; there the user must see to it.
        pass
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when there is no such file, or no object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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


def iterate_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of a run folder, one at a time, each with the byte at which it starts.

    Each is an object with the step that it was written at. A last line cut short by a crash is left out.

    Raises:
        UserError: a row is something else.
    """
    if not path.exists():
        return
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number} is damaged: it is no JSON") from error
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise UserError(f"{path}: line {number} is no object with a step")
            yield start, row
            start += len(line)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All of `iterate_rows`, for the files that hold numbers alone."""
    return [row for _, row in iterate_rows(path)]


def is_number(value: Any) -> bool:
    """Whether a logged value can be reckoned with: a diverged run logs NaN and infinities too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of one JSON object a line."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, each a line, and see them on disk; where there is no room for all, there is none of them."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with naming(path), path.open("ab", buffering=0) as file:
        whole = file.tell()
        try:
            left = memoryview(text.encode("utf-8"))
            while left:  # a full disk may take a part, and refuse the rest only then
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise


def keep_up_to(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that a run goes on from."""
    if path.exists():
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            for _, row in iterate_rows(path):
                if row["step"] <= step:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        commit_file(temporary, path)


def sync_folder(folder: Path) -> None:
    """See everything in a folder on disk: after a power cut, a mark that it is whole tells the truth."""
    for path in [*sorted(folder.rglob("*")), folder]:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that names no file, as those of a write and a sync do not, gets this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def writing_to(path: Path, key: str = "output_dir") -> Iterator[None]:
    """What a setting names and cannot be written is told in one line, which begins with the setting's key.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: cannot write to {path} ({error.strerror})") from error


def make_folder(folder: Path, key: str = "output_dir") -> None:
    """Make a folder that a setting names, and those above it.

    Raises:
        UserError: it is a file, or cannot be made; the message begins with the setting's key.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key}: {folder} is a file")
    with writing_to(folder, key):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def disk_told_of(folder: Path, what_stays: str) -> Iterator[None]:
    """A folder that cannot be written (full, read-only, gone) ends the work with one line that says so.

    Raises:
        UserError: in place of what the operating system, arrow, sqlite, torch or safetensors said; `what_stays` ends
            its message.
    """
    try:
        yield
    except Exception as error:
        path, reason = _named(error), disk_trouble(error)
        ours = path is not None and path.is_relative_to(folder)
        if reason is None and ours and isinstance(error, OSError):
            reason = error.strerror
        if reason is None:
            raise
        where = folder if path is None or ours else path
        if reason == _TORCH:
            reason = f"{reason}; {_room(folder)}"
        raise UserError(f"{where}: cannot be written ({reason}); {what_stays}") from error


def told_of_disk(error: BaseException) -> str | None:
    """For people: the path that cannot be used, and why; None where it is no fault of a disk or a permission."""
    reason = disk_trouble(error)
    if isinstance(error, OSError) and error.errno in NO_ACCESS:
        reason = os.strerror(error.errno)
    return None if reason is None else f"{_named(error) or 'a file'}: cannot be used ({reason})"


def disk_trouble(error: BaseException) -> str | None:
    """Why something could not be written; None where the error is of another kind."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in DISK_TROUBLE else None
    if isinstance(error, sqlite3.OperationalError):
        return str(error) if error.sqlite_errorcode & 0xFF in _SQLITE_DISK_TROUBLE else None
    # safetensors and torch's file writer name the cause, where they do, in their text alone.
    text = str(error)
    for number in DISK_TROUBLE:
        if f"os error {number})" in text:
            return os.strerror(number)
    if isinstance(error, RuntimeError) and ("inline_container.cc" in text or "PytorchStreamWriter" in text):
        return _TORCH
    return None


def _named(error: BaseException) -> Path | None:
    named = error.filename if isinstance(error, OSError) else None
    return None if named is None or isinstance(named, int) else Path(os.fsdecode(named))


def _room(folder: Path) -> str:
    try:
        space = os.statvfs(folder)
    except OSError as error:
        return str(error.strerror)
    return f"{space.f_bavail * space.f_frsize / 1e9:.2f} GB free"


_TORCH = "torch could not write a whole file"
_SQLITE_DISK_TROUBLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
