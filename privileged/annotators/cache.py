"""Every reply that was ever paid for, on disk: written before it is used, found again by what was asked."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import digest_json
from dopd_vl.common.errors import ConfigurationError
from privileged.annotators.requests import Reply

FILE = "replies.sqlite"
COLUMNS = "key, text, problem, prompt_tokens, reply_tokens, checksum"
INSERT = f"INSERT OR IGNORE INTO replies ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"


class ReplyCache:
    """A sqlite file in WAL mode. It survives kill -9 at any moment; a power cut may cost the last moments' replies.

    The token counts of all replies in it are the spend, so spend and replies cannot come apart. Each reply has a
    checksum. Of a file that was damaged the whole ones are taken over into a new one, and the others asked for again.

    Args:
        say: told of damage.

    Raises:
        ConfigurationError: the folder cannot be used.
    """

    def __init__(self, folder: Path, key: str = "annotate.cache", say: Callable[[str], None] = lambda text: None):
        file = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._database = _open(file)
                whole = _is_whole(self._database)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                whole = False
            if not whole:
                aside = _set_aside(file)
                self._database = _open(file)
                kept = self._take_over(aside)
                say(f"{file}: was damaged; {kept} whole replies are kept, others are asked for again ({aside.name})")
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"{key}: {folder} cannot be used ({error})") from error
        self._lock = threading.Lock()

    def _take_over(self, aside: Path) -> int:
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(aside)) as damaged:
            damaged.text_factory = _text
            for row in damaged.execute(f"SELECT {COLUMNS} FROM replies"):
                if _is_sound(row):
                    self._database.execute(INSERT, row)
        self._database.commit()
        return int(self._database.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def find(self, key: str) -> Reply | None:
        with self._lock:
            row = self._database.execute(
                "SELECT text, prompt_tokens, reply_tokens, problem FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return Reply(*row) if row else None

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is committed when this returns."""
        with self._lock, self._database:
            row = (key, reply.text, reply.problem, reply.prompt_tokens, reply.reply_tokens)
            self._database.execute(INSERT, (*row, digest_json(row)))

    def spent(self) -> tuple[int, int]:
        """Prompt and reply tokens of all replies."""
        with self._lock:
            row = self._database.execute(
                "SELECT COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(reply_tokens), 0) FROM replies"
            ).fetchone()
        return int(row[0]), int(row[1])

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _open(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=60, check_same_thread=False)
    database.text_factory = _text
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, problem TEXT, "
        "prompt_tokens INTEGER NOT NULL, reply_tokens INTEGER NOT NULL, checksum TEXT) WITHOUT ROWID"
    )
    if "checksum" not in [column[1] for column in database.execute("PRAGMA table_info(replies)")]:
        database.execute(
            "ALTER TABLE replies ADD COLUMN checksum TEXT"
        )  # of replies that were kept before there were any
    database.commit()
    return database


def _is_whole(database: sqlite3.Connection) -> bool:
    [problem] = database.execute("PRAGMA integrity_check(1)").fetchone()
    return problem == "ok" and all(map(_is_sound, database.execute(f"SELECT {COLUMNS} FROM replies")))


def _is_sound(row: tuple[Any, ...]) -> bool:
    return row[-1] in (None, digest_json(row[:-1]))


def _set_aside(file: Path) -> Path:
    """Nothing that was paid for is deleted: the damaged file and its log get another name."""
    number = next(number for number in itertools.count(1) if not file.with_name(f"damaged-{number}.sqlite").exists())
    aside = file.with_name(f"damaged-{number}.sqlite")
    for ending in ("-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            file.with_name(file.name + ending).rename(aside.with_name(aside.name + ending))
    file.with_name(f"{file.name}-shm").unlink(missing_ok=True)
    return aside


def _text(value: bytes) -> str:
    """Damaged text is no error: its checksum is not its own."""
    return value.decode("utf-8", errors="replace")
