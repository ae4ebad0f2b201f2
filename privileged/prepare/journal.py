"""The state of a preparation on disk. It can be killed at any point: what is committed stays, the rest is done again.

output/.prepare/state.json          what is being prepared (a fingerprint)
output/.prepare/seen.sqlite         ids and contents of the kept records, to find duplicates in flat memory
output/.prepare/shard-00000.json    written last: the shard is committed, with its counts and its rejected records
output/data/train-00000-of-00012.parquet
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import sealed, sha256_of, unsealed
from dopd_vl.common.files import commit_file, disk_trouble, read_json, write_atomically
from privileged.dataset import AUDIT_FILE, CARD_FILE, DATA_FOLDER, DROPPED_FILE, INFO_FILE, REJECTED_FILE, WORK_FOLDER
from privileged.prepare.near import Signatures

PARTIAL_AUDIT_FILE = "audit-partial.json"
CACHE_KIB = 64 * 1024
"""Of the database of seen records: keys are digests, so its pages are met in no order."""
OUR_FILES = (
    CARD_FILE,
    AUDIT_FILE,
    PARTIAL_AUDIT_FILE,
    REJECTED_FILE,
    DROPPED_FILE,
    INFO_FILE,
    "sample.html",
    "sample.png",
)


def dumps(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


class Journal:
    """The work folder of one output."""

    def __init__(self, output: Path):
        self._output, self.folder = output, output / WORK_FOLDER
        self.state_file, self.seen_file = self.folder / "state.json", self.folder / "seen.sqlite"

    def fingerprint(self) -> str | None:
        """Of the preparation that this folder was begun for; None when none was, or when its state was damaged."""
        state = self._state()
        return state["fingerprint"] if state else None

    def has_begun(self) -> bool:
        """False as well when a kill came while `begin` was clearing the folder."""
        state = self._state()
        return state is not None and not state["clearing"]

    def is_lost(self) -> bool:
        """Whether there is work here, and nothing that says of which preparation."""
        work = self.folder.iterdir() if self.folder.is_dir() else ()
        return self._state() is None and any(not path.name.startswith(".") for path in work)

    def _state(self) -> dict[str, Any] | None:
        state = unsealed(read_json(self.state_file))
        return state if state is not None and {"fingerprint", "clearing"} <= set(state) else None

    def begin(self, fingerprint: str) -> None:
        """Start anew: whatever an earlier preparation left here is removed, its sign of completeness first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # From here on the folder is known as ours, so that a run that is killed while it clears it can go on.
        write_atomically(self.state_file, dumps(sealed({"fingerprint": fingerprint, "clearing": True})))
        for name in OUR_FILES:
            (self._output / name).unlink(missing_ok=True)
        for file in (self._output / DATA_FOLDER).glob("train-*.parquet"):
            file.unlink()
        for file in self.folder.iterdir():
            if file != self.state_file:
                file.unlink()
        (self._output / DATA_FOLDER).mkdir(exist_ok=True)
        write_atomically(self.state_file, dumps(sealed({"fingerprint": fingerprint, "clearing": False})))

    def committed(self) -> tuple[int, Path | None]:
        """How many shards, from the first, are whole, and the file for which no more are, if it was damaged.

        What lies beyond them is discarded.
        """
        count, damaged = 0, None
        while (note := self.read_shard(count)) is not None:
            file = self._output / DATA_FOLDER / note["file"]
            if not file.is_file() or sha256_of(file) != note["digest"]:
                damaged = file
                break
            count += 1
        beyond = [path for path in self.folder.glob("shard-*.json") if int(path.stem.removeprefix("shard-")) >= count]
        for path in beyond:
            path.unlink()
        return count, damaged or (self._note(count) if beyond else None)

    def open_seen(self, committed: int) -> Seen | None:
        """What the committed shards have added; None where it is not that any more."""
        note = self.read_shard(committed - 1) if committed else None
        if note is None:
            self.seen_file.unlink(missing_ok=True)
            return Seen(self.seen_file, 0)
        try:
            seen = Seen(self.seen_file, committed)
            if seen.is_whole(note.get("seen")):
                return seen
            seen.close()
        except sqlite3.DatabaseError as error:
            if disk_trouble(error):
                raise
        return None

    def read_shard(self, shard: int) -> dict[str, Any] | None:
        return unsealed(read_json(self._note(shard)))

    def commit_shard(self, shard: int, temporary: Path, name: str, note: dict[str, Any], seen: Seen) -> None:
        """The parquet file first, then what it adds to the seen records, then the note that makes it count."""
        final = self._output / DATA_FOLDER / name
        commit_file(temporary, final)
        seen.commit()
        note = {"file": name, "bytes": final.stat().st_size, "digest": sha256_of(final), "seen": seen.total, **note}
        write_atomically(self._note(shard), json.dumps(sealed(note), ensure_ascii=True))

    def write_lines(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        """A JSONL file in the output, whole or not at all."""
        temporary = self.folder / name
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
        commit_file(temporary, self._output / name)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"


class Seen:
    """Ids and contents of kept records, on disk. What belongs to uncommitted shards is forgotten on opening.

    Raises:
        sqlite3.DatabaseError: the file is no database any more.
    """

    def __init__(self, path: Path, committed: int):
        self.database = sqlite3.connect(path, isolation_level="DEFERRED")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, id TEXT, shard INTEGER) WITHOUT ROWID"
        )
        self.database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.database.execute("DELETE FROM seen WHERE shard >= ?", (committed,))
        self.signatures = Signatures(self.database, committed)
        self.database.commit()
        self._sum = 0

    @property
    def total(self) -> str:
        """A sum over every row of the database, whatever their order, that another row would not leave as it is."""
        return f"{(self._sum + self.signatures.sum) % 2**64:016x}"

    def is_whole(self, total: str | None) -> bool:
        """Whether the rows are those that once had this total and can all be found; None: of before there were any."""
        [problem] = self.database.execute("PRAGMA integrity_check(1)").fetchone()
        self._sum = sum(_row_sum(*row) for row in self.database.execute("SELECT key, id, shard FROM seen"))
        self.signatures.count()
        return problem == "ok" and total in (None, self.total)

    def find(self, key: bytes) -> str | None:
        """The id of the record that was added under this key."""
        found = self.database.execute("SELECT id FROM seen WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def add(self, key: bytes, record_id: str, shard: int) -> None:
        if self.database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (key, record_id, shard)).rowcount:
            self._sum += _row_sum(key, record_id, shard)

    def commit(self) -> None:
        self.database.commit()

    def close(self) -> None:
        self.database.close()


def _row_sum(key: bytes, record_id: str, shard: int) -> int:
    row = key + f"\0{record_id}\0{shard}".encode()
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")
