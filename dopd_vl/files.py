"""Files that are never half-written: the old one stays until the whole new one takes its place."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
