"""Every reply that was ever paid for, on disk: written before it is used, found again by what was asked."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from dopd_vl.common.errors import ConfigurationError
from privileged.annotators.requests import Reply

FILE = "replies.sqlite"


class ReplyCache:
    """A sqlite file in WAL mode. It survives kill -9 at any moment; a power cut may cost the last moments' replies.

    The token counts of all replies in it are the spend, so spend and replies cannot come apart.
    """

    def __init__(self, folder: Path, key: str = "annotate.cache"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / FILE, timeout=60, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, problem TEXT, "
                "prompt_tokens INTEGER NOT NULL, reply_tokens INTEGER NOT NULL) WITHOUT ROWID"
            )
            self._database.commit()
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"{key}: {folder} cannot be used ({error})") from error
        self._lock = threading.Lock()

    def find(self, key: str) -> Reply | None:
        with self._lock:
            row = self._database.execute(
                "SELECT text, prompt_tokens, reply_tokens, problem FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return Reply(*row) if row else None

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is committed when this returns."""
        with self._lock, self._database:
            self._database.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)",
                (key, reply.text, reply.problem, reply.prompt_tokens, reply.reply_tokens),
            )

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
