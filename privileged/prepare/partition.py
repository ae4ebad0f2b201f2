"""A preparation in parts, on several machines, and their merge.

A part keeps the outcome of every record of its range: set aside, or checked and annotated. What concerns the whole set
(duplicates, counts, the share of rejected records) is left to the merge, which feeds the outcomes of all parts, in the
order of the records, through the very code of a single run. So its result is that run's, to the byte.

output.part-2-of-4/state.json               what is being prepared (a fingerprint)
output.part-2-of-4/outcomes-00000.parquet   meta (JSON), row
output.part-2-of-4/outcomes-00000.json      written last: the file is committed
output.part-2-of-4/part.json                the part is whole
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopd_vl.common.digests import sealed, sha256_of, unsealed
from dopd_vl.common.errors import PrepareError
from dopd_vl.common.files import commit_file, exclusive, read_json, write_atomically
from dopd_vl.common.progress import Progress
from privileged.prepare.config import PrepareConfig
from privileged.prepare.journal import dumps
from privileged.prepare.outcomes import Outcome, OutcomeStream, counted, tell
from privileged.prepare.shards import RowGroupWriter
from privileged.records.fields import Finding
from privileged.schema import features

if TYPE_CHECKING:
    from rich.console import Console

STATE_FILE = "state.json"
DONE_FILE = "part.json"


def part_folder(output: Path, part: str) -> Path:
    """
    >>> part_folder(Path("data/set"), "2/4").name
    'set.part-2-of-4'
    """
    number, _, parts = part.partition("/")
    return output.with_name(f"{output.name}.part-{number}-of-{parts}")


def prepare_part(
    config: PrepareConfig,
    fingerprint: str,
    total: int,
    output: Path,
    console: Console,
    outcomes: Callable[[int, int, Path], AbstractContextManager[OutcomeStream]],
) -> tuple[dict[str, Any], bool]:
    """Work on one part until it is whole; its content of part.json, and whether it was whole before.

    Args:
        total: Records of the whole set.
        outcomes: Opens the outcomes of records from and to, with a folder for scratch files.

    Raises:
        PrepareError: more records were set aside than the whole set may lose.
    """
    folder = PartFolder(output)
    folder.begin(fingerprint, config.overwrite)
    first, last = config.part_range(total)
    notes = folder.notes()
    done = folder.done()
    if done is not None and len(notes) == done["files"]:
        return done, True
    (output / DONE_FILE).unlink(missing_ok=True)
    if folder.goes_beyond(len(notes)):
        damaged = folder.first_damaged(len(notes))
        tell(console, f"{damaged}: is missing, or not what was written; going on from there")
    start = min(first + len(notes) * config.shard_size, last)
    rejected = sum(note["rejected"] for note in notes)
    with (
        outcomes(start, last, output) as (stream, spent),
        Progress(console, "preparing", last - first, "records", start - first) as progress,
    ):
        while start < last:
            some = islice(stream, config.shard_size)
            notes.append(folder.write(len(notes), counted(some, progress, rejected, spent)))
            start = min(start + config.shard_size, last)
            rejected += notes[-1]["rejected"]
            if rejected > int(config.max_rejected_share * total + 1e-9):
                reason = next(note["first"] for note in notes if note["first"])
                raise PrepareError(
                    f"{output}: {rejected} records were rejected, more than the share of "
                    f"{config.max_rejected_share:g} of all {total} allows; the first was {reason}"
                )
    records = sum(note["records"] for note in notes)
    done = {"fingerprint": fingerprint, "first": first, "last": last, "files": len(notes)}
    done |= {"records": records, "rejected": rejected}
    write_atomically(output / DONE_FILE, dumps(sealed(done)))
    return done, False


class PartFolder:
    """The work of one part. It can be killed at any moment: committed files stay, the rest is done again."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, fingerprint: str, overwrite: bool) -> None:
        """Go on with what was begun for the same fingerprint, or start anew."""
        state = unsealed(read_json(self.folder / STATE_FILE))
        if state is not None and state.get("fingerprint") == fingerprint:
            return
        if any(path.name.startswith("outcomes-") for path in self.folder.iterdir()) and not overwrite:
            if state is None:
                raise PrepareError(
                    f"{self.folder / STATE_FILE}: is missing or damaged; set overwrite: true to prepare this part anew"
                )
            raise PrepareError(
                f"{self.folder}: was prepared from other settings or another source; set overwrite: true to replace it"
            )
        (self.folder / DONE_FILE).unlink(missing_ok=True)
        for path in [*self.folder.glob("outcomes-*.json"), *self.folder.glob("outcomes-*.parquet")]:
            path.unlink()
        write_atomically(self.folder / STATE_FILE, dumps(sealed({"fingerprint": fingerprint})))

    def done(self) -> dict[str, Any] | None:
        """{fingerprint, records, rejected, first, last} of a whole part."""
        return unsealed(read_json(self.folder / DONE_FILE))

    def notes(self) -> list[dict[str, Any]]:
        """Of the committed files, from the first, as long as they are whole: a copy may not be."""
        notes: list[dict[str, Any]] = []
        while (note := unsealed(read_json(self._path(len(notes), "json")))) is not None:
            file = self._path(len(notes), "parquet")
            if not file.is_file() or file.stat().st_size != note["bytes"]:
                break
            if note.get("digest") not in (None, sha256_of(file)):
                break
            notes.append(note)
        return notes

    def first_damaged(self, whole: int) -> Path:
        """The file for which only so many, from the first, are whole."""
        note = unsealed(read_json(self._path(whole, "json")))
        return self._path(whole, "json" if note is None else "parquet")

    def goes_beyond(self, whole: int) -> bool:
        """Whether more than so many were committed once."""
        return any(int(path.stem.removeprefix("outcomes-")) >= whole for path in self.folder.glob("outcomes-*.json"))

    def write(self, number: int, stream: Iterable[Outcome]) -> dict[str, Any]:
        """Commit one file of outcomes; how many it keeps, how many are set aside, and the first reason."""
        temporary = self.folder / f".outcomes-{number:05d}.tmp"
        kept = rejected = 0
        first = None
        with _OutcomeWriter(temporary) as writer:
            for outcome in stream:
                writer.add(outcome)
                kept += outcome.row is not None
                rejected += outcome.row is None
                if outcome.row is None:
                    first = first or f"{outcome.id}: {outcome.reason}"
        commit_file(temporary, self._path(number, "parquet"))
        whole = self._path(number, "parquet")
        note = {"records": kept, "rejected": rejected, "first": first}
        note |= {"bytes": whole.stat().st_size, "digest": sha256_of(whole)}
        write_atomically(self._path(number, "json"), json.dumps(sealed(note)))
        return note

    def read(self, files: int) -> Iterator[Outcome]:
        """The outcomes in the first so many files, a row group in memory at a time."""
        import pyarrow.parquet as pq

        for number in range(files):
            with pq.ParquetFile(self._path(number, "parquet")) as file:
                for group in range(file.num_row_groups):
                    for entry in file.read_row_group(group).to_pylist():
                        yield _outcome(entry)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"outcomes-{number:05d}.{suffix}"


@contextmanager
def merged_outcomes(output: Path, fingerprint: str, total: int, first: int) -> Iterator[OutcomeStream]:
    """The outcomes of all records from number `first` on, from the parts beside `output`, which stay as they are.

    Raises:
        PrepareError: a part is missing, unfinished, damaged, or of another preparation.
        UserError: a part is being prepared.
    """
    parts = find_parts(output)
    with ExitStack() as locks:
        for part in parts:
            locks.enter_context(exclusive(part.folder, "preparation"))
        files = _whole_files(parts, output, fingerprint, total)
        outcomes = (outcome for part, count in zip(parts, files, strict=True) for outcome in part.read(count))
        yield islice(outcomes, first, None), None


def find_parts(output: Path) -> list[PartFolder]:
    name = re.compile(re.escape(output.name) + r"\.part-(\d+)-of-(\d+)")  # no other folder, such as a part's replies
    found = [match for path in sorted(output.parent.glob("*")) if (match := name.fullmatch(path.name)) is not None]
    counts = {int(match[2]) for match in found}
    if len(counts) != 1:
        names = ", ".join(match.string for match in found) or "none"
        raise PrepareError(f"{output}: merging needs all parts of one division beside it; found: {names}")
    count = counts.pop()
    parts = [PartFolder(part_folder(output, f"{number}/{count}")) for number in range(1, count + 1)]
    for part in parts:
        if not part.folder.is_dir():
            raise PrepareError(f"{part.folder}: is missing; prepare it with part: ..., and merge then")
    return parts


def _whole_files(parts: Sequence[PartFolder], output: Path, fingerprint: str, total: int) -> list[int]:
    """How many files each part has, all of them whole."""
    position, files = 0, []
    for part in parts:
        done = part.done()
        if done is None:
            raise PrepareError(f"{part.folder / DONE_FILE}: is missing or damaged; run its part again, and merge then")
        if done["fingerprint"] != fingerprint or done["first"] != position:
            raise PrepareError(f"{part.folder}: was prepared from other settings or another source than this merge")
        if (whole := len(part.notes())) != done["files"]:
            file = part.first_damaged(whole)
            raise PrepareError(f"{file}: is missing, or not what was written; copy it, or run its part again")
        position = done["last"]
        files.append(done["files"])
    if position != total:
        raise PrepareError(f"{output}: the parts hold {position} records of {total}")
    return files


class _OutcomeWriter(RowGroupWriter):
    def __init__(self, path: Path):
        import pyarrow as pa

        row = pa.struct(list(features().arrow_schema))
        super().__init__(path, pa.schema([pa.field("meta", pa.string()), pa.field("row", row)]))

    def add(self, outcome: Outcome) -> None:
        meta = dataclasses.asdict(dataclasses.replace(outcome, row=None))
        meta |= {"digest": outcome.digest.hex(), "signature": outcome.signature.hex()}
        del meta["row"]
        self.write({"meta": json.dumps(meta), "row": outcome.row}, outcome.row["images"] if outcome.row else ())


def _outcome(entry: dict[str, Any]) -> Outcome:
    meta = json.loads(entry["meta"])
    meta |= {name: bytes.fromhex(meta[name]) for name in ("digest", "signature")}
    meta["findings"] = [Finding(**finding) for finding in meta["findings"]]
    return Outcome(row=entry["row"], **meta)
