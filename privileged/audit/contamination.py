"""Overlap with evaluation questions: shared n-grams of words, as GPT-3 (2005.14165, appendix C) and others count it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import ConfigurationError

KEY = "audit.decontaminate"
TEXT_KEYS = ("question", "problem", "prompt", "text", "input")
"""Columns that may hold the question, the first that a row has."""

_WORD = re.compile(r"\w+")


class EvaluationQuestions:
    """The questions of a file: JSONL, parquet, or text with one question a line.

    What is held in memory is a set of 64-bit hashes, one for each n-gram, and each question that is shorter as a whole.
    """

    def __init__(self, path: str, ngram: int):
        self._ngram = ngram
        self._grams: set[int] = set()
        self._short: set[int] = set()
        count = 0
        for question in _questions(Path(path)):
            found = words(question)
            if not found:
                continue
            count += 1
            if len(found) < ngram:
                self._short.add(text_hash(" ".join(found)))
            else:
                self._grams.update(_grams(found, ngram))
        if count == 0:
            raise ConfigurationError(f"{KEY}: {path} holds no question")

    def overlap(self, text: str) -> str | None:
        """The words that a prompt shares with an evaluation question; None when it shares none.

        An n-gram counts anywhere; a question of fewer than n words only when it is the whole prompt.
        """
        found = words(text)
        if len(found) < self._ngram:
            return " ".join(found) if found and text_hash(" ".join(found)) in self._short else None
        for at, gram in enumerate(_grams(found, self._ngram)):
            if gram in self._grams:
                return " ".join(found[at : at + self._ngram])
        return None


def file_digest(path: str) -> str:
    """Of the file's content; ConfigurationError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{KEY}: {path} cannot be read ({error.strerror})") from error


def words(text: str) -> list[str]:
    """Words and numbers in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def _grams(found: list[str], size: int) -> Iterator[int]:
    return (text_hash(" ".join(found[at : at + size])) for at in range(len(found) - size + 1))


def text_hash(text: str) -> int:
    """64 bits of a text, as a number."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _questions(path: Path) -> Iterator[str]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet_questions(path)
            return
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    is_row = path.suffix == ".jsonl"
                    yield _question(_json(line, f"line {number} of {path}"), str(path)) if is_row else line
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{KEY}: {path} cannot be read ({error})") from error


def _parquet_questions(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ConfigurationError(f"{KEY}: {path} is no readable parquet file ({error})") from error
    column = next((key for key in TEXT_KEYS if key in file.schema_arrow.names), None)
    if column is None:
        raise ConfigurationError(f"{KEY}: {path} has none of the columns {', '.join(TEXT_KEYS)}")
    for batch in file.iter_batches(columns=[column]):
        for row in batch.to_pylist():
            yield _question(row, str(path))


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{KEY}: {where} is no JSON ({error})") from error


def _question(row: Any, where: str) -> str:
    value = row
    if isinstance(row, dict):
        value = next((row[key] for key in TEXT_KEYS if row.get(key)), None)
    if isinstance(value, list):  # chat messages: what the user says
        said = (item.get("content") for item in value if isinstance(item, dict) and item.get("role") == "user")
        value = "\n".join(content for content in said if isinstance(content, str))
    if not isinstance(value, str):
        raise ConfigurationError(f"{KEY}: a row of {where} has no question under {', '.join(TEXT_KEYS)}")
    return value
