"""From source records to a privileged dataset: `prepare` reads, checks, audits and writes, and can be killed anywhere.

    source record --read--> raw --annotate, parse--> record --audit--> row --> parquet shard
                      |                  |                     |
                      +------------------+---------------------+--> rejected.jsonl (id, index, stage, reason)

Shard k holds the source records [k * shard_size, (k + 1) * shard_size) that were kept, so a rerun goes on at the first
shard that was not committed, and ends with the very bytes that an undisturbed run writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopd_vl.common.digests import digest_json, sealed, sha256_of
from dopd_vl.common.errors import ConfigurationError, PrepareError, UserError
from dopd_vl.common.files import disk_told_of, exclusive, write_atomically
from dopd_vl.common.hub import open_repository, push_folder
from dopd_vl.common.progress import Progress
from dopd_vl.common.terminal import Terminal, tell
from privileged.annotators.ahead import annotation_fingerprint
from privileged.annotators.estimate import Estimate, estimate
from privileged.annotators.judging import judge_fingerprint
from privileged.audit.audit import Severity, Tally
from privileged.audit.contamination import EvaluationQuestions
from privileged.dataset import (
    AGAIN,
    AUDIT_FILE,
    CARD_FILE,
    DATA_FOLDER,
    DROPPED_FILE,
    FORMAT,
    INFO_FILE,
    REJECTED_FILE,
    WORK_FOLDER,
    damaged_file,
    is_prepared,
    read_audit,
)
from privileged.prepare.card import card, dataset_info
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.duplicates import Duplicates
from privileged.prepare.ending import ending
from privileged.prepare.journal import OUR_FILES, PARTIAL_AUDIT_FILE, Journal, Seen, dumps
from privileged.prepare.outcomes import Outcome, OutcomeStream, RecordProcessor, counted, outcome_stream
from privileged.prepare.partition import merged_outcomes, part_folder, prepare_part
from privileged.prepare.sample import sample_note, sample_places, write_sample
from privileged.prepare.shards import ShardWriter
from privileged.records.annotations import OWN_ANNOTATIONS
from privileged.sources.cards import resolve_source
from privileged.sources.sources import SOURCES, CountingSource, Source, SourceFactory

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PrepareConfig", "PrepareResult", "SourceConfig", "prepare"]


REMOVED_LIMITS = {"allow_urls": False, "allow_private_urls": False, "url_seconds": 20.0}
"""Settings of images that there were: they stay in fingerprints, so that what was begun with them is taken up."""

PUSHED = [CARD_FILE, AUDIT_FILE, INFO_FILE, REJECTED_FILE, DROPPED_FILE, f"{DATA_FOLDER}/*.parquet"]
"""What the hub gets of a finished folder."""

MAX_TOLD = 10
"""Columns that are likely misspelt, of which a line is printed."""

WHAT_STAYS = "what is committed stays, make room and run the same command again"


@dataclass(frozen=True)
class PrepareResult:
    """What a preparation made: the folder, and its audit (the content of audit.json)."""

    output: Path
    records: int
    rejected: int
    audit: dict[str, Any]
    was_complete: bool
    """Whether the folder was finished before, so that nothing was done."""

    def lines(self) -> list[str]:
        """For people: what was kept, set aside and dropped and why, and the files that show it."""
        if self.audit:
            return ending(self.output, self.audit)
        return [
            f"{self.output}: a part with {self.records} records, {self.rejected} set aside; `merge` joins the parts"
        ]


def prepare(
    config: PrepareConfig,
    extra_sources: Mapping[str, SourceFactory] | None = None,
    console: Console | None = None,
) -> PrepareResult:
    """Make a privileged dataset, or finish one that an earlier run was stopped in.

    Args:
        extra_sources: More kinds of sources, each a factory from options to a Source. With workers they must be
            importable functions or classes.
        console: Where progress goes; standard error by default.

    Raises:
        ConfigurationError: a setting is wrong; nothing was written.
        PrepareError: the preparation cannot go on; what was done is kept.
    """
    config.check()
    if console is None:
        console = Terminal(stderr=True)
    config, source, factory = with_source(config, extra_sources)
    hub = config.push_to_hub
    output = _output_folder(config)
    with exclusive(output, "preparation"), disk_told_of(output, WHAT_STAYS):
        if hub is not None:
            open_repository(hub, "dataset", "push_to_hub")
        preparation = _Preparation(config, source, factory, output, console)
        result = preparation.run() if config.part is None else preparation.run_part()
        if hub is not None:
            address = push_folder(output, hub, "dataset", "push_to_hub", PUSHED, [f"{DATA_FOLDER}/*"])
            tell(console, f"{output}: pushed to {address}")
        return result


def estimate_annotation(config: PrepareConfig, extra_sources: Mapping[str, SourceFactory] | None = None) -> Estimate:
    """What the annotation of a preparation will cost. Nothing is asked and nothing is written."""
    config.check()
    if config.annotate is None:
        raise ConfigurationError("annotate: is not set, there is nothing to estimate")
    config, source, _ = with_source(config, extra_sources)
    assert config.annotate is not None
    indices = order(len(source), config)
    first, last = config.part_range(len(indices))
    return estimate(config.annotate, RecordProcessor(config, source).to_annotate, indices[first:last])


def _output_folder(config: PrepareConfig) -> Path:
    output = Path(config.output) if config.part is None else part_folder(Path(config.output), config.part)
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"output: {output} is a file")
    if config.part is None and output.is_dir() and not is_prepared(output) and not (output / WORK_FOLDER).is_dir():
        foreign = sorted(path.name for path in output.iterdir())
        if foreign:
            raise ConfigurationError(
                f"output: {output} holds other files ({foreign[0]}, ...); name an empty or new folder"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"output: the folder {output} cannot be made ({error.strerror})") from error
    return output


class _Preparation:
    def __init__(self, config: PrepareConfig, source: Source, factory: SourceFactory, output: Path, console: Console):
        self.config, self.source, self.factory, self.output, self.console = config, source, factory, output, console
        self.severity = config.audit.resolved()
        self.journal = Journal(output)
        self.fingerprint = fingerprint(config, source)
        self.order = order(len(source), config)
        self.total = len(self.order)
        self.shard_count = -(-self.total // config.shard_size)
        self.places = sample_places(self.total, config.sample, config.seed)
        self.told: set[str] = set()
        self.allowed = int(config.max_rejected_share * self.total + 1e-9)

    def run(self) -> PrepareResult:
        audit = read_audit(self.output)
        started_for = audit["fingerprint"] if audit is not None else self.journal.fingerprint()
        damaged = self._damaged(audit)
        other = started_for is not None and started_for != self.fingerprint
        if (other or damaged is not None) and not self.config.overwrite:
            if other:
                raise PrepareError(
                    f"{self.output}: was prepared from other settings or another source; set overwrite: true to "
                    "replace it, or name another output"
                )
            raise PrepareError(f"{damaged}: is missing, or not what was prepared; {AGAIN}")
        if other or damaged is not None:
            audit, started_for = None, None
        if audit is not None:
            self.journal.remove()
            tell(self.console, f"{self.output}: already prepared, {audit['records']} records")
            return PrepareResult(self.output, audit["records"], audit["rejected"], audit, was_complete=True)
        if started_for is None or not self.journal.has_begun():
            self.journal.begin(self.fingerprint)
        tally = self._shards()
        return self._finish(tally)

    def _damaged(self, audit: Mapping[str, Any] | None) -> Path | None:
        """What keeps this folder from being taken as it is; None also where there is nothing to be taken."""
        if audit is not None:
            return damaged_file(self.output, audit)
        if self.journal.is_lost():
            return self.journal.state_file
        if self.journal.fingerprint() is None and is_prepared(self.output):
            return self.output / (AUDIT_FILE if (self.output / CARD_FILE).is_file() else CARD_FILE)
        return None

    def _shards(self) -> Tally:
        """Write every shard that is not committed, in order; the counts of all."""
        committed, seen = self._committed()
        tally = found_in(self.source, self.severity)
        for note in self._notes(committed):
            tally.add(note["tally"])
        done = min(committed * self.config.shard_size, self.total)
        duplicates = Duplicates(seen, self.severity, self.config.audit.near_duplicate)
        try:
            if tally.rejected > self.allowed:
                self._give_up(tally, committed, [])
            with (
                self._stream(done) as (stream, spent),
                Progress(self.console, "preparing", self.total, "records", done) as progress,
            ):
                for shard in range(committed, self.shard_count):
                    some = islice(stream, self.config.shard_size)
                    outcomes = counted(some, progress, tally.rejected, spent)
                    note, temporary = self._shard(shard, outcomes, duplicates, tally)
                    name = f"train-{shard:05d}-of-{self.shard_count:05d}.parquet"
                    self.journal.commit_shard(shard, temporary, name, note, seen)
                    tally.add(note["tally"])
        finally:
            seen.close()
        return tally

    def _committed(self) -> tuple[int, Seen]:
        """How many shards need not be prepared again, and what they have added to the seen records."""
        committed, damaged = self.journal.committed()
        seen = self.journal.open_seen(committed)
        if seen is None:
            damaged = self.journal.seen_file
            self.journal.begin(self.fingerprint)
            committed, seen = 0, self.journal.open_seen(0)
            assert seen is not None
        if damaged is not None:
            what = "is missing, or not what was written"
            tell(self.console, f"{damaged}: {what}; going on from record {committed * self.config.shard_size}")
        return committed, seen

    def run_part(self) -> PrepareResult:
        """Prepare one part, for a merge to come."""
        done, was_complete = prepare_part(
            self.config, self.fingerprint, self.total, self.output, self.console, self._outcomes
        )
        return PrepareResult(self.output, done["records"], done["rejected"], {}, was_complete)

    def _stream(self, first: int) -> AbstractContextManager[OutcomeStream]:
        if self.config.merge:
            return merged_outcomes(self.output, self.fingerprint, self.total, first)
        return self._outcomes(first, self.total, self.journal.folder)

    def _outcomes(self, first: int, last: int, work: Path) -> AbstractContextManager[OutcomeStream]:
        indices = self.order[first:last]
        return outcome_stream(self.config, self.source, self.factory, indices, self.output, work, self.console)

    def _shard(
        self, shard: int, stream: Iterator[Outcome], duplicates: Duplicates, tally: Tally
    ) -> tuple[dict[str, Any], Path]:
        """Write one shard; its note for the journal, and the file that is to be committed."""
        part, rejected, dropped, sample = Tally(), [], [], []
        temporary = self.journal.folder / f"shard-{shard:05d}.parquet"
        with ShardWriter(temporary) as writer:
            for place, outcome in enumerate(stream, start=shard * self.config.shard_size):
                duplicates.judge(outcome, shard)
                self._tell_unread(outcome)
                part.note(outcome.id, (finding.code for finding in outcome.findings))
                part.annotated.update(outcome.annotated)
                part.judged(outcome.illusion_score)
                dropped += [{"id": outcome.id, "index": outcome.index, **drop} for drop in outcome.dropped]
                if outcome.row is not None:
                    if place in self.places:
                        sample.append(sample_note(part.records, outcome.findings))
                    part.keep(outcome.row, outcome.variants)
                    writer.add(outcome.row)
                else:
                    part.reject(str(outcome.stage))
                    rejected.append(
                        {"id": outcome.id, "index": outcome.index, "stage": outcome.stage, "reason": outcome.reason}
                    )
                if tally.rejected + part.rejected > self.allowed:
                    tally.add(part.to_dict())
                    self._give_up(tally, shard, rejected)
        return {"tally": part.to_dict(), "rejected": rejected, "dropped": dropped, "sample": sample}, temporary

    def _tell_unread(self, outcome: Outcome) -> None:
        """Of a column that is likely misspelt at once, and once: the rest of the run may be in vain."""
        for finding in outcome.findings:
            if finding.code == "column_unread" and finding.detail not in self.told and len(self.told) < MAX_TOLD:
                self.told.add(finding.detail)
                tell(self.console, f"{self.output}: {outcome.id}: {finding.detail}", "bold yellow")

    def _give_up(self, tally: Tally, shard: int, unfinished: Sequence[Mapping[str, Any]]) -> None:
        """Too many records were rejected: keep what was seen, and say which reason was the most frequent."""
        self.journal.write_lines(REJECTED_FILE, self._rejected(shard, unfinished))
        write_atomically(self.output / PARTIAL_AUDIT_FILE, dumps(self._audit(tally)))
        stages = ", ".join(f"{count} at stage {stage}" for stage, count in tally.stages.most_common())
        first = next(self._rejected(shard, unfinished))
        raise PrepareError(
            f"{self.output}: {tally.rejected} of the first {tally.records + tally.rejected} records were rejected "
            f"({stages}), more than the share of {self.config.max_rejected_share:g} of all {self.total} allows; the "
            f"first was {first['id']}: {first['reason']}. All are in {REJECTED_FILE} there; mend the source or raise "
            "max_rejected_share, and run again"
        )

    def _finish(self, tally: Tally) -> PrepareResult:
        self.journal.write_lines(REJECTED_FILE, self._rejected(self.shard_count, []))
        if tally.records == 0:
            raise PrepareError(f"{self.output}: every record was rejected; see {REJECTED_FILE} there")
        digests, size, sampled = {}, 0, []
        for note in self._notes(self.shard_count):  # one at a time: with what was dropped they may be large
            digests[note["file"]] = note["digest"]
            size += note["bytes"]
            sampled.append((self.output / DATA_FOLDER / note["file"], note["sample"]))
        audit = {**self._audit(tally), "files": list(digests), "digest": digest_json(list(digests.values()))}
        if self.config.annotate is not None:
            dropped = (drop for note in self._notes(self.shard_count) for drop in note["dropped"])
            self.journal.write_lines(DROPPED_FILE, dropped)
        write_atomically(self.output / INFO_FILE, dataset_info(audit, size))
        (self.output / PARTIAL_AUDIT_FILE).unlink(missing_ok=True)
        if self.config.sample:
            write_sample(self.output, sampled, self._rejected(self.shard_count, []), self.source.name)
        text = card(audit)
        audit["digests"] = {f"{DATA_FOLDER}/{name}": digest for name, digest in digests.items()}
        beside = [name for name in OUR_FILES if name not in (AUDIT_FILE, CARD_FILE) and (self.output / name).is_file()]
        audit["digests"] |= {name: sha256_of(self.output / name) for name in beside}
        audit["digests"][CARD_FILE] = hashlib.sha256(text.encode()).hexdigest()
        audit = sealed(audit)
        write_atomically(self.output / AUDIT_FILE, dumps(audit))
        write_atomically(self.output / CARD_FILE, text)
        self.journal.remove()
        tell(self.console, f"{self.output}: {tally.records} records prepared")
        return PrepareResult(self.output, tally.records, tally.rejected, audit, was_complete=False)

    def _audit(self, tally: Tally) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "records": tally.records,
            "rejected": tally.rejected,
            "source": {**dataclasses.asdict(self.config.source), "fingerprint": self.source.fingerprint()},
            "severity": self.severity,
            "counts": tally.to_dict(),
        }

    def _rejected(self, shards: int, unfinished: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for note in self._notes(shards):
            yield from note["rejected"]
        yield from unfinished

    def _notes(self, shards: int) -> Iterator[dict[str, Any]]:
        for shard in range(shards):
            note = self.journal.read_shard(shard)
            if note is None:
                raise PrepareError(f"{self.output}: the note of shard {shard} went away; run the same command again")
            yield note


def with_source(
    config: PrepareConfig, extra_sources: Mapping[str, SourceFactory] | None
) -> tuple[PrepareConfig, Source, SourceFactory]:
    """The configuration with its card's settings filled in, the source, opened, and what opens it again."""
    if config.audit.decontaminate is not None:  # a file that cannot be used is told of here, and not by a worker
        EvaluationQuestions(config.audit.decontaminate, config.audit.decontaminate_ngram)
    settings, factory = resolve_source(config.source, {**SOURCES, **(extra_sources or {})})
    config = dataclasses.replace(config, source=settings)
    try:
        source = factory(settings.options)
    except UserError:
        raise
    except ValueError as error:  # a factory from outside need not know our errors
        raise ConfigurationError(f"source.options: {error}") from error
    if len(source) == 0:
        found = found_in(source, config.audit.resolved())
        left = f" ({told})" if (told := ", ".join(f"{count} {code}" for code, count in found.findings.items())) else ""
        raise ConfigurationError(f"source.options: the source {source.name!r} holds no records{left}")
    found_in(source, config.audit.resolved())
    return config, source, factory


def found_in(source: Source, severity: Mapping[str, Severity]) -> Tally:
    """What the source left out or mended when it was opened. ConfigurationError for what the audit is to refuse."""
    tally = Tally()
    if isinstance(source, CountingSource):
        tally.add(source.found.to_dict())
    for code in list(tally.findings):
        if severity[code] == "reject":
            raise ConfigurationError(
                f"audit.severity.{code}: is reject, and the source has {tally.findings[code]}: "
                f"{', '.join(tally.examples[code])}"
            )
        if severity[code] == "ignore":
            del tally.findings[code], tally.examples[code]
    return tally


def fingerprint(config: PrepareConfig, source: Source) -> str:
    """Of everything that decides what the dataset holds; not of how it is made (workers) or judged (the share)."""
    settings = dataclasses.asdict(config)
    for key in ("output", "workers", "max_rejected_share", "overwrite", "annotate", "part", "merge", "sample"):
        del settings[key]
    del settings["push_to_hub"]
    settings["audit"] = config.audit.fingerprint()
    settings["images"] |= REMOVED_LIMITS
    parts = [FORMAT, source.name, source.fingerprint(), OWN_ANNOTATIONS, settings]
    if config.annotate is not None:
        parts.append(annotation_fingerprint(config.annotate))
    if config.audit.model is not None:
        parts.append(judge_fingerprint(config.audit.model))
    return digest_json(parts)


def order(count: int, config: PrepareConfig) -> Sequence[int]:
    """The records to prepare, by their numbers in the source."""
    indices: Sequence[int] = range(count)
    if config.shuffle:
        import numpy as np

        indices = np.random.default_rng(config.seed).permutation(count).tolist()
    return indices[: config.limit]
