"""Overlap with evaluation questions: shared n-grams of words, as GPT-3 (2005.14165, appendix C) and others count it."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import ConfigurationError

KEY = "audit.decontaminate"
TEXT_KEYS = ("question", "problem", "prompt", "text", "input")
"""Columns that may hold the question, the first that a row has."""

SIGNS_IN_WORD = {
    2: "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff",
    4: "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff",
}
"""Scripts without spaces between words, where each sign is counted alone: so many make about one word. Two Chinese or
Japanese signs, four Thai, Lao, Burmese or Khmer ones."""

_WORD = re.compile(rf"[{''.join(SIGNS_IN_WORD.values())}]|[^\W{''.join(SIGNS_IN_WORD.values())}]+")
_SIGNS = {count: re.compile(f"[{signs}]") for count, signs in SIGNS_IN_WORD.items()}
_PARTS = 4
"""Of a word's weight: the least common multiple of `SIGNS_IN_WORD`."""


class EvaluationQuestions:
    """The questions of a file: JSONL, parquet, or text with one question a line.

    What is held in memory is a set of 64-bit hashes, one for each n-gram, and each question that is shorter as a whole.

    Args:
        template: What a source card puts around each question, see `SourceCard.prompt_template`: it is no part of what
            is compared.
    """

    def __init__(self, path: str, ngram: int, template: str | None = None):
        self._ngram = ngram
        self._before, _, self._after = (template or "{value}").strip().partition("{value}")
        self._grams: set[int] = set()
        self._short: set[int] = set()
        count = 0
        for question in _questions(Path(path)):
            found = words(question)
            if not found:
                continue
            count += 1
            grams = {text_hash(gram) for gram in _grams(found, ngram)}
            if grams:
                self._grams |= grams
            else:
                self._short.add(text_hash(" ".join(found)))
        if count == 0:
            raise ConfigurationError(f"{KEY}: {path} holds no question")

    def overlap(self, text: str) -> str | None:
        """The words that a prompt shares with an evaluation question; None when it shares none.

        An n-gram counts anywhere; a question of fewer than n words only when it is the whole prompt, or a line or
        paragraph of it: instructions around a question stand apart.
        """
        text = text.strip()
        if text.startswith(self._before) and text.endswith(self._after):
            text = text[len(self._before) : len(text) - len(self._after)]
        for gram in _grams(words(text), self._ngram):
            if text_hash(gram) in self._grams:
                return gram
        for part in dict.fromkeys((text, *text.split("\n\n"), *text.splitlines())) if self._short else ():
            whole = " ".join(words(part))
            if whole and text_hash(whole) in self._short:
                return whole
        return None


def file_digest(path: str) -> str:
    """Of the file's content; ConfigurationError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{KEY}: {path} cannot be read ({error.strerror})") from error


def words(text: str) -> list[str]:
    """Words and numbers in lower case, without punctuation and accents; of scripts without spaces each sign.

    >>> words("Wie heißt „Café“ auf 中文?")
    ['wie', 'heisst', 'cafe', 'auf', '中', '文']
    """
    text = text.casefold()
    if not text.isascii():  # vowel signs of Indian scripts and of Thai are marks too, and no signs of a word to `re`
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char)[0] != "M")
        text = unicodedata.normalize("NFC", text)
    return _WORD.findall(text)


def word_count(text: str) -> int:
    """Words between spaces; where there are no spaces, what makes about as many.

    >>> word_count("It isn't far."), word_count("这不是一个很远的地方")
    (3, 5)
    """
    return max(len(text.split()), sum(weight for word in words(text) if (weight := _weight(word)) < _PARTS) // _PARTS)


def _weight(word: str) -> int:
    return next((_PARTS // count for count, sign in _SIGNS.items() if sign.match(word)), _PARTS)


def _grams(found: list[str], size: int) -> Iterator[str]:
    """The shortest runs of words, from each place on, that weigh as much as `size` words with spaces between them."""
    weights = [_weight(word) for word in found]
    end = weight = 0
    for start in range(len(found)):
        while weight < size * _PARTS:
            if end == len(found):
                return
            weight += weights[end]
            end += 1
        yield " ".join(found[start:end])
        weight -= weights[start]


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
