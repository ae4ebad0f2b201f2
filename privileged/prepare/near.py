"""Near-duplicates across a data set: MinHash signatures of prompts (Broder 1997) and locality-sensitive bands on disk.

datasketch does the same, but in memory: 100,000 prompts of 60 words took it 121 s and 650 MB, these tables 68 s, 90 MB
of disk and no more memory than sqlite's bounded cache, and they are committed with each shard.

Two prompts are compared when they have the same images and the same numbers: one template with other numbers, or one
question about other pictures, is another exercise.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Sequence

import numpy as np

from privileged.audit.contamination import text_hash, words

SHINGLE = 3
"""Words that follow each other."""

PERMUTATIONS, BANDS = 128, 16
"""16 bands of 8 values: prompts that share 90 % of their shingles meet in a band with probability 0.9999."""

MIN_WORDS = 8
"""Shorter prompts are compared as a whole only (`duplicate_record`)."""

_generator = np.random.default_rng(20260630)
_FACTORS = _generator.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _generator.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)


def signature(text: str) -> bytes:
    """The MinHash signature of a text, 512 bytes; empty for a text that is too short.

    >>> signature("too short")
    b''
    """
    found = words(text)
    if len(found) < MIN_WORDS:
        return b""
    shingles = {" ".join(found[at : at + SHINGLE]) for at in range(len(found) - SHINGLE + 1)}
    hashes = np.array([text_hash(shingle) for shingle in sorted(shingles)], dtype=np.uint64)
    least = np.full(PERMUTATIONS, 2**64 - 1, dtype=np.uint64)
    for start in range(0, len(hashes), 1024):  # of a long text a part at a time
        part = hashes[start : start + 1024, None] * _FACTORS + _OFFSETS  # modulo 2**64
        least = np.minimum(least, part.min(axis=0))
    return (least >> np.uint64(32)).astype("<u4").tobytes()


def similarity(one: bytes, other: bytes) -> float:
    """The estimated share of shingles that two texts have in common."""
    return float(np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")))


def near_keys(text: str, images: bytes, sketch: bytes) -> list[int]:
    """The keys under which a prompt meets its near-duplicates, one for each band; 64 bits, for sqlite's row numbers."""
    if not sketch:
        return []
    numbers = " ".join(sorted(re.findall(r"\d+(?:[.,]\d+)*", text)))
    salt = hashlib.blake2b(images + numbers.encode(), digest_size=16).digest()
    size = len(sketch) // BANDS
    parts = (bytes([band]) + sketch[band * size : (band + 1) * size] for band in range(BANDS))
    digests = (hashlib.blake2b(salt + part, digest_size=8).digest() for part in parts)
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


class Signatures:
    """Signatures of the kept records in the database of the seen ones, which commits them. The first record under each
    key stands for all later ones, so that a million copies of a text take no more time than two."""

    def __init__(self, database: sqlite3.Connection, committed: int):
        self._database = database
        self.sum = 0
        """Of every row, see `Seen.total`."""
        database.execute(
            "CREATE TABLE IF NOT EXISTS sketches (record INTEGER PRIMARY KEY, id TEXT, signature BLOB, shard INTEGER)"
        )
        database.execute("CREATE TABLE IF NOT EXISTS near (key INTEGER PRIMARY KEY, record INTEGER)")
        database.execute(
            "DELETE FROM near WHERE record IN (SELECT record FROM sketches WHERE shard >= ?)", (committed,)
        )
        database.execute("DELETE FROM sketches WHERE shard >= ?", (committed,))

    def count(self) -> None:
        """The sum of the rows that there are."""
        self.sum = sum(_sketch_sum(*row) for row in self._database.execute("SELECT * FROM sketches"))
        keys = self._database.execute("SELECT key, record FROM near")
        while rows := keys.fetchmany(100_000):
            self.sum += int((np.array(rows, dtype=np.int64).astype(np.uint64) * _ODD).sum(dtype=np.uint64))

    def find(self, keys: Sequence[int], sketch: bytes, threshold: float) -> str | None:
        """The id of the earliest record found that shares at least `threshold` of the shingles."""
        places = ", ".join("?" * len(keys))
        candidates = self._database.execute(
            "SELECT DISTINCT sketches.record, id, signature FROM near JOIN sketches ON sketches.record = near.record "
            f"WHERE key IN ({places}) ORDER BY sketches.record",
            tuple(keys),
        )
        return next((str(name) for _, name, other in candidates if similarity(sketch, other) >= threshold), None)

    def add(self, keys: Sequence[int], sketch: bytes, record_id: str, shard: int) -> None:
        if not keys:
            return
        record = self._database.execute(
            "INSERT INTO sketches (id, signature, shard) VALUES (?, ?, ?)", (record_id, sketch, shard)
        ).lastrowid
        assert record is not None
        self.sum += _sketch_sum(record, record_id, sketch, shard)
        for key in keys:
            if self._database.execute("INSERT OR IGNORE INTO near VALUES (?, ?)", (key, record)).rowcount:
                self.sum += key * int(_ODD[0]) + record * int(_ODD[1])


_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)


def _sketch_sum(record: int, record_id: str, sketch: bytes, shard: int) -> int:
    row = f"{record}\0{record_id}\0{shard}\0".encode() + sketch
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")
