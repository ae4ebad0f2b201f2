"""What becomes of each source record, in order, in this process or in several.

`outcome_stream` opens the outcomes, with annotation beside them where the configuration asks for it; `RecordProcessor`
makes one outcome.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopd_vl.common.errors import ImageError, PrepareError, RecordError
from dopd_vl.common.progress import Progress
from dopd_vl.common.terminal import tell
from dopd_vl.common.visible import visible
from privileged.annotators.ahead import AnnotationAhead
from privileged.annotators.annotation import Annotation
from privileged.annotators.estimate import estimate
from privileged.audit.audit import check_record, judge
from privileged.audit.contamination import EvaluationQuestions
from privileged.prepare.config import PrepareConfig
from privileged.prepare.near import near_keys, signature
from privileged.records.annotations import own_annotations
from privileged.records.fields import Finding
from privileged.records.records import MAX_ID, Record, default_id, parse_record, user_text
from privileged.rendering.variants import VARIANTS
from privileged.sources.cards import prompt_template
from privileged.sources.sources import ImageFolderSource, Source, SourceFactory

if TYPE_CHECKING:
    from rich.console import Console


BATCH = 16
MAX_REASON = 1000


@dataclass
class Outcome:
    """One source record: either its `row`, or the `stage` and `reason` that it was set aside for."""

    index: int
    id: str
    stage: str | None = None
    reason: str | None = None
    row: dict[str, Any] | None = None
    digest: bytes = b""
    signature: bytes = b""
    near_keys: list[int] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    annotated: dict[str, int] = field(default_factory=dict)
    """What annotation asked for, made and dropped, see `Annotation.counts`."""
    dropped: list[dict[str, Any]] = field(default_factory=list)
    illusion_score: float | None = None

    def set_aside(self, stage: str, reason: str) -> None:
        self.stage, self.reason, self.row = stage, visible(reason[:MAX_REASON]), None


OutcomeStream = tuple[Iterator[Outcome], Callable[[], str] | None]
"""Outcomes in the order of the records, and what annotation has cost so far, for people."""


@contextmanager
def outcome_stream(
    config: PrepareConfig,
    source: Source,
    factory: SourceFactory,
    indices: Sequence[int],
    output: Path,
    work: Path,
    console: Console,
) -> Iterator[OutcomeStream]:
    """The outcomes of some records; leaving ends the workers, the annotation and the judge.

    Args:
        output: The folder that is made; its name is the default for the cache's.
        work: Where scratch files go.
    """
    if (config.annotate is None and config.audit.model is None) or not indices:
        with closing(outcomes(config, source, factory, indices)) as stream:
            yield stream, None
        return
    # A source of its own: annotation runs ahead of the writer, and a source that keeps a block in memory would read
    # each block over and over for the two.
    processor = RecordProcessor(config, factory(config.source.options))
    say = partial(tell, console)
    if config.annotate is not None:
        for line in estimate(config.annotate, processor.to_annotate, indices).lines():
            say(line)
    ahead = AnnotationAhead(config.annotate, config.audit, processor.to_annotate, indices, output, work, say)
    try:
        with closing(outcomes(config, source, factory, indices, ahead.take)) as stream:
            yield stream, ahead.spent
    finally:
        ahead.close()
        say(ahead.spent())


def counted(
    stream: Iterable[Outcome], progress: Progress, rejected: int, spent: Callable[[], str] | None
) -> Iterator[Outcome]:
    """The same outcomes, each counted when whoever takes it comes back for the next.

    Args:
        rejected: How many were set aside before.
        spent: What was paid for annotation so far, if any.
    """
    for outcome in stream:
        yield outcome
        rejected += outcome.row is None
        progress.advance(facts=", ".join([f"{rejected} rejected", *([] if spent is None else [spent()])]))


def outcomes(
    config: PrepareConfig,
    source: Source,
    factory: SourceFactory,
    indices: Sequence[int],
    annotation_of: Callable[[int], Annotation | None] = lambda index: None,
) -> Generator[Outcome, None, None]:
    """The outcome of each source record, in the order of `indices`, whatever the number of workers."""
    if config.workers == 0:
        processor = RecordProcessor(config, source)
        for index in indices:
            yield processor(index, annotation_of(index))
        return
    # Fresh processes, not forks: this one may hold threads and locks (progress bar, arrow).
    pool = ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn"), _start_worker, (config, factory))
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for start in range(0, len(indices), BATCH):
            batch = [(index, annotation_of(index)) for index in indices[start : start + BATCH]]
            waiting.append(pool.submit(_work, batch))
            if len(waiting) > 2 * config.workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PrepareError("a worker process died (out of memory?); run again, perhaps with fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: RecordProcessor | None = None


def _start_worker(config: PrepareConfig, factory: SourceFactory) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = RecordProcessor(config, factory(config.source.options))


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(batch: list[tuple[int, Annotation | None]]) -> list[Outcome]:
    assert _worker is not None
    return [_worker(index, annotation) for index, annotation in batch]


class RecordProcessor:
    """Takes one source record through reading, annotation, parsing and the audit."""

    def __init__(self, config: PrepareConfig, source: Source):
        self._config, self._source = config, source
        self._severity = config.audit.resolved()
        self._questions: EvaluationQuestions | None = None
        if config.audit.decontaminate is not None:
            self._questions = EvaluationQuestions(
                config.audit.decontaminate, config.audit.decontaminate_ngram, prompt_template(config.source)
            )
        self._annotate = config.annotate
        self._image_root: Path | None = source.image_root if isinstance(source, ImageFolderSource) else None

    def __call__(self, index: int, annotation: Annotation | None = None) -> Outcome:
        """The outcome of a record, with the parts that annotation made for it."""
        outcome = Outcome(index, default_id(self._config.source.name or self._source.name, index))
        try:
            record = self._parse(index, outcome, annotation.parts if annotation else ())
        except ImageError as error:
            outcome.set_aside("image", str(error))
            return outcome
        except RecordError as error:
            outcome.id = visible(error.record or outcome.id)
            outcome.set_aside(outcome.stage or "record", str(error))
            return outcome
        findings = []
        if annotation is not None:
            record.privileged.update(annotation.parts)  # type: ignore[typeddict-item]
            record.privileged["provenance"] = self._provenance(record, annotation)
            outcome.annotated, outcome.dropped = annotation.counts(), annotation.dropped
            record.illusion_score = outcome.illusion_score = annotation.illusion_score
            findings = [Finding(*finding) for finding in annotation.judged]
        outcome.id, outcome.row, outcome.digest = record.id, record.row(), record.content_digest()
        findings += check_record(record, self._config.audit, self._questions)
        reason, outcome.findings = judge(findings, self._severity)
        if reason is not None:
            outcome.set_aside("audit", reason)
            return outcome
        missing = annotation.missing(self._annotate.optional) if annotation and self._annotate else None
        if missing is not None:
            outcome.set_aside("annotate", missing)
            return outcome
        if self._severity["near_duplicate"] != "ignore":
            text = user_text(record.prompt)
            outcome.signature = signature(text)
            outcome.near_keys = near_keys(text, record.image_digest(), outcome.signature)
        example = record.example()
        outcome.variants = [name for name, variant in VARIANTS.items() if variant.missing(example) is None]
        return outcome

    def to_annotate(self, index: int) -> Record | None:
        """The record as annotation and the judge see it; None when it is set aside whatever is added to it."""
        replaced = self._annotate.parts if self._annotate is not None and self._annotate.replace else ()
        try:
            record = self._parse(index, Outcome(index, ""), replaced)
        except RecordError:
            return None
        found = check_record(record, self._config.audit, self._questions)
        findings = [finding for finding in found if finding.code != "no_privilege"]
        record.images = [stored.folded() for stored in record.images]
        return record if judge(findings, self._severity)[0] is None else None

    def _parse(self, index: int, outcome: Outcome, without: Iterable[str]) -> Record:
        """The record as its source has it, save some privileged parts. Until it is read, `outcome.stage` says so."""
        settings = self._config.source
        name = settings.name or self._source.name
        outcome.stage = "read"
        try:
            raw = self._source[index]
            outcome.stage = None
            if not isinstance(raw, Mapping):
                raise RecordError(f"a record must be a mapping, not {type(raw).__name__}")
            if isinstance(raw.get("id"), str):  # for the report, should the record not parse
                outcome.id = visible(raw["id"][:MAX_ID])
            privileged = own_annotations(raw)
            for part in without:
                privileged.pop(part, None)
            return parse_record(
                {**raw, "privileged": privileged},
                index=index,
                source=name,
                image_root=self._image_root,
                default_task=settings.default_task,
                box_format=settings.box_format,
                limits=self._config.images,
            )
        except RecordError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise PrepareError(f"record {index} of source {self._source.name!r}: the source failed, {what}") from error

    def _provenance(self, record: Record, annotation: Annotation) -> str | None:
        """Who made what: "source; hints, caption by the-model; boxes by module:function"."""
        if self._annotate is None:
            return record.privileged["provenance"]
        makers: dict[str, list[str]] = {}
        for part in annotation.parts:
            detected = part == "boxes" and self._annotate.detector is not None
            maker = self._annotate.detector if detected else self._annotate.model
            makers.setdefault(Path(str(maker)).name if self._annotate.kind == "local" else str(maker), []).append(part)
        made = [f"{', '.join(parts)} by {maker}" for maker, parts in makers.items()]
        carried = record.privileged["provenance"]
        return "; ".join([carried, *made] if carried else made) or None
