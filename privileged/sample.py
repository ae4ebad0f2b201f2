"""Some records of a preparation to look at: which, what the audit said of them, and the files that show them.

The places are drawn from the seed before anything is read, so that a killed run shows what an undisturbed one does.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Finding
from .journal import write_atomically
from .schema import Example

SHEET_FILE, PAGE_FILE = "sample.png", "sample.html"
REJECTED_SHOWN = 12


@dataclass(frozen=True)
class Sampled:
    """One kept record of the sample, and what the audit found."""

    example: Example
    findings: list[Finding]


def sample_places(total: int, count: int, seed: int) -> set[int]:
    """Which of the `total` source records to show, by their place in the order of the run."""
    return set(np.random.default_rng(seed).choice(total, size=min(count, total), replace=False).tolist())


def sample_note(row: int, findings: Iterable[Finding]) -> dict[str, Any]:
    """What a shard's note keeps of a sampled record: its row in the shard, and its findings."""
    return {"row": row, "findings": [[finding.code, finding.detail] for finding in findings]}


def write_sample(
    output: Path,
    places: Iterable[tuple[Path, Sequence[Mapping[str, Any]]]],
    rejected: Iterable[Mapping[str, Any]],
    title: str,
) -> None:
    """Write the page of sampled records, and a contact sheet where they have images.

    Args:
        places: Each shard's file, and what `sample_note` gave for its sampled rows.
        rejected: Entries of rejected.jsonl, of which the first are shown.
    """
    from .contact_sheet import contact_sheet
    from .sample_page import sample_page

    sampled = [record for file, wanted in places for record in _read(file, wanted)]
    if any(record.example["images"] for record in sampled):
        buffer = io.BytesIO()
        contact_sheet([record.example for record in sampled if record.example["images"]]).save(buffer, format="PNG")
        write_atomically(output / SHEET_FILE, buffer.getvalue())
    write_atomically(output / PAGE_FILE, sample_page(sampled, list(islice(rejected, REJECTED_SHOWN)), title))


def _read(file: Path, wanted: Sequence[Mapping[str, Any]]) -> Iterable[Sampled]:
    """The sampled rows of one shard, a row group in memory at a time."""
    import pyarrow.parquet as pq
    from PIL import Image

    if not wanted:
        return
    table = pq.ParquetFile(file)
    start = 0
    for group in range(table.num_row_groups):
        length = table.metadata.row_group(group).num_rows
        mine = [note for note in wanted if start <= note["row"] < start + length]
        rows = table.read_row_group(group) if mine else None
        for note in mine:
            assert rows is not None
            row = rows.slice(note["row"] - start, 1).to_pylist()[0]
            row["images"] = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"]]
            yield Sampled(row, [Finding(*finding) for finding in note["findings"]])
        start += length
