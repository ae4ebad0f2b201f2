"""The run folder's own files at each checkpoint, so that damage is noticed, and undone where it can be.

A checkpoint holds the small ones (settings, fingerprint, metrics, refusals, alarms) whole, in `run/`: a run that goes
on has them as they were then. rollouts.jsonl, which may be gigabytes, is known by its length and digest. `digests.json`
has the digests of all of them in the run folder, too, for those who read it without going on.
"""

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import sealed, unsealed
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import commit_file, keep_up_to, read_json, write_atomically, write_json
from dopd_vl.common.run_layout import (
    ALARMS_FILE,
    BEST_FOLDER,
    CONFIG_FILE,
    DIGESTS_FILE,
    FACTS_FILE,
    FINGERPRINT_FILE,
    KEPT_FOLDER,
    METRICS_FILE,
    REFUSED_FILE,
    ROLLOUTS_FILE,
    checkpoint_step,
)
from dopd_vl.run_folder.checkpoints import damaged, read_mark, whole_checkpoints

_LOGS = (METRICS_FILE, REFUSED_FILE, ALARMS_FILE)
_BLOCK = 1024 * 1024
_LOST = (
    "not as the run wrote it, and no checkpoint holds a copy; put one back that you have, or delete it: its rows are "
    "lost then"
)


class GrowingFile:
    """A file that is only ever appended to, and the digest of all of it: nothing of it is read twice for that."""

    def __init__(self, path: Path):
        self.path = path
        self._size = 0
        self._digest = hashlib.sha256()

    def facts(self) -> dict[str, Any]:
        """Its length now and its digest."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._size)
                while block := file.read(_BLOCK):
                    self._digest.update(block)
                    self._size += len(block)
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}


class KeptFiles:
    """Of one run, as long as it trains."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._growing = {name: GrowingFile(folder / name) for name in (*_LOGS, ROLLOUTS_FILE)}

    def write_digests(self) -> None:
        """To be called when everything of a step was logged."""
        of_settings = {name: GrowingFile(self.folder / name) for name in (CONFIG_FILE, FINGERPRINT_FILE)}
        files = {name: file.facts() for name, file in {**self._growing, **of_settings}.items()}
        best = unsealed(read_json(self.folder / BEST_FOLDER / FACTS_FILE))
        write_json(self.folder / DIGESTS_FILE, sealed({"files": files, "best": best}))

    def copy_into(self, checkpoint: Path) -> None:
        """Before the checkpoint is marked as whole."""
        self.write_digests()
        kept = checkpoint / KEPT_FOLDER
        kept.mkdir(exist_ok=True)
        for name in (CONFIG_FILE, FINGERPRINT_FILE, *_LOGS, DIGESTS_FILE):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, kept / name)


def check_unchanged(folder: Path, names: Sequence[str]) -> list[str]:
    """Of files that are only read here, what the run wrote up to its last checkpoint; the names of those that are gone
    and are not needed. Runs of earlier versions have no digests.

    Raises:
        UserError: a file is not as the run wrote it; the message names it and what puts it right.
    """
    if not (folder / DIGESTS_FILE).exists():
        return []
    words = ["dopd-vl", "train", "--config", folder / CONFIG_FILE, "--output_dir", folder, "--resume", "true"]
    again = shlex.join(map(str, words))
    digests = unsealed(read_json(folder / DIGESTS_FILE))
    if digests is None:
        raise UserError(f"{folder / DIGESTS_FILE}: damaged; delete it, or `{again}` writes it anew")
    for name in names:
        if is_as_it_was(folder / name, digests["files"].get(name)):
            continue
        if name == ROLLOUTS_FILE:
            raise UserError(f"{folder / name}: {_LOST}, and this command shows the run without them")
        who = "the command that trained it, with --resume true," if name == CONFIG_FILE else f"`{again}`"
        raise UserError(f"{folder / name}: not as the run wrote it; {who} puts it right from its last checkpoint")
    return [name for name in names if digests["files"][name]["bytes"] and not (folder / name).exists()]


def is_as_it_was(file: Path, facts: Mapping[str, Any] | None) -> bool:
    """Whether a file begins with what it had in it; a file that is gone has lost nothing but itself."""
    if facts is None or facts["bytes"] == 0:
        return True
    if not file.exists():
        return file.name == ROLLOUTS_FILE
    digest, left = hashlib.sha256(), facts["bytes"]
    with file.open("rb") as opened:
        while left and (block := opened.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return not left and digest.hexdigest() == facts["sha256"]


def kept_in(checkpoint: Path | None, name: str) -> Path | None:
    """A file of the run folder as it was at a checkpoint that is whole."""
    file = None if checkpoint is None else checkpoint / KEPT_FOLDER / name
    return file if file is not None and file.is_file() else None


def check_rollouts(folder: Path, checkpoint: Path | None) -> str | None:
    """Of the rollouts, of which there is no copy: what is to be said where they are gone.

    Raises:
        UserError: they are not as they were.
    """
    facts = _digests(checkpoint).get("files", {}).get(ROLLOUTS_FILE)
    file = folder / ROLLOUTS_FILE
    if not is_as_it_was(file, facts):
        raise UserError(f"resume: {file}: {_LOST}. Without any checkpoint the run begins anew and makes them again")
    if facts is not None and facts["bytes"] and not file.exists():
        return f"{file} is gone: it begins anew with the rows from here on"
    return None


def mend_best(folder: Path, checkpoint: Path | None) -> str | None:
    """The best student as it was at the checkpoint, from files of checkpoints where its own are damaged; what is to be
    said where it is gone.

    Raises:
        UserError: it is damaged, and no checkpoint has what it had.
    """
    recorded, best = _digests(checkpoint).get("best"), folder / BEST_FOLDER
    if checkpoint is None or recorded is None or "files" not in recorded:
        return None
    finish_replacement(best)
    if not best.exists():
        return f"{best} is gone: the next evaluation that is better than at step {recorded['step']} makes it again"
    now = read_mark(best, FACTS_FILE)
    if now is not None and (now["step"] > checkpoint_step(checkpoint) or now == recorded):
        return None
    bad = damaged(best, recorded["files"])
    for name in bad:
        for source in whole_checkpoints(folder):
            if (source / name).is_file() and not damaged(source, {name: recorded["files"][name]}):
                temporary = best / f".{name}.tmp"
                shutil.copyfile(source / name, temporary)
                commit_file(temporary, best / name)
                break
        else:
            raise UserError(_best_is_lost(best / name, recorded["step"], folder))
    write_json(best / FACTS_FILE, sealed(recorded))
    return f"{best}: damaged, and put right from checkpoints: {', '.join([*bad, FACTS_FILE])}"


def _best_is_lost(file: Path, step: int, folder: Path) -> str:
    newer = [path.name for path in whole_checkpoints(folder) if checkpoint_step(path) >= step]
    return (
        f"resume: {file}: not as it was saved at step {step}, and no checkpoint has a copy; delete "
        f"{', '.join(newer)} of {folder} to make it again from before that step, or {BEST_FOLDER}/ to go on without it"
    )


def finish_replacement(folder: Path) -> None:
    """Where a save was killed between taking the old student away and putting the new one there: the old one."""
    if not folder.exists() and stale(folder).exists():
        stale(folder).rename(folder)


def stale(folder: Path) -> Path:
    """Where the old student is for the moment in which a new one takes its place."""
    return folder.with_name(f".{folder.name}.stale")


def restore(folder: Path, checkpoint: Path | None) -> None:
    """The run folder's own files as they were at a checkpoint; without one, empty."""
    (folder / DIGESTS_FILE).unlink(missing_ok=True)
    facts = _digests(checkpoint).get("files")
    for name in (*_LOGS, ROLLOUTS_FILE):
        file, kept = folder / name, kept_in(checkpoint, name)
        if kept is not None:
            write_atomically(file, kept.read_bytes())
        elif checkpoint is None or (facts is not None and name != ROLLOUTS_FILE):
            file.unlink(missing_ok=True)
        elif facts is None:  # a checkpoint of an earlier version
            keep_up_to(file, checkpoint_step(checkpoint))
        elif file.exists():
            os.truncate(file, facts[name]["bytes"])
    digests = kept_in(checkpoint, DIGESTS_FILE)
    if digests is not None:
        write_atomically(folder / DIGESTS_FILE, digests.read_bytes())


def _digests(checkpoint: Path | None) -> dict[str, Any]:
    file = kept_in(checkpoint, DIGESTS_FILE)
    return (unsealed(read_json(file)) or {}) if file is not None else {}
