"""Checkpoints that are whole or do not count.

A checkpoint is whole when its `complete.json`, which is written last, names every file in it with the content that the
file still has. So neither a save that was cut short, nor a removal that was, nor a file that was damaged later, is
taken for a good checkpoint; and an older one goes only after the newer one is whole.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import digest_file
from dopd_vl.common.files import read_json, sync_folder, write_json
from dopd_vl.common.run_layout import COMPLETE_FILE, checkpoint_step


def mark_whole(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """To be called when every process has written its part: what lies in the checkpoint is all of it."""
    sync_folder(checkpoint)
    files = {str(p.relative_to(checkpoint)): digest_file(p) for p in _files(checkpoint)}
    write_json(checkpoint / COMPLETE_FILE, {**facts, "files": files})


def read_mark(checkpoint: Path) -> dict[str, Any] | None:
    """The facts of a whole checkpoint; None for any other folder."""
    mark = read_json(checkpoint / COMPLETE_FILE)
    if mark is None or not isinstance(mark.get("files"), dict) or not mark["files"]:
        return None
    files = {name: checkpoint / name for name in mark["files"]}
    if not all(path.is_file() and digest_file(path) == mark["files"][name] for name, path in files.items()):
        return None
    return mark


def has_checkpoints(folder: Path) -> bool:
    """Whether a run began to write one, whole or not."""
    return bool(_checkpoints(folder))


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run folder that were saved to their end and are as they were saved, oldest first."""
    return [path for path in _checkpoints(folder) if read_mark(path) is not None]


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest; older ones are looked at only where newer ones are not whole."""
    return next((path for path in reversed(_checkpoints(folder)) if read_mark(path) is not None), None)


def remove_newer(folder: Path, checkpoint: Path | None) -> list[str]:
    """Remove what a cut-short save left behind, so that the run that goes on writes into fresh folders; their names."""
    last = -1 if checkpoint is None else checkpoint_step(checkpoint)
    newer = [path for path in _checkpoints(folder) if checkpoint_step(path) > last]
    for path in newer:
        _remove(path)
    return [path.name for path in newer]


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints; 0 or less keeps all."""
    for path in _checkpoints(folder)[:-count] if count > 0 else ():
        _remove(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Whole or not, oldest first."""
    return sorted((p for p in folder.glob("*") if checkpoint_step(p) >= 0 and p.is_dir()), key=checkpoint_step)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE_FILE)


def _remove(checkpoint: Path) -> None:
    (checkpoint / COMPLETE_FILE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
