"""What becomes of each source record, in order, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .annotators.own import OwnAnnotator
from .audit import check_record, judge
from .config import PrepareConfig
from .contamination import EvaluationQuestions
from .errors import ImageError, PrepareError, RecordError
from .near import near_keys, signature
from .records import MAX_ID, Finding, default_id, parse_record, user_text
from .sources import ImageFolderSource, Source
from .variants import VARIANTS

SourceFactory = Callable[[Mapping[str, Any]], Source]

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
    near_keys: list[bytes] = field(default_factory=list)
    variants: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def set_aside(self, stage: str, reason: str) -> None:
        self.stage, self.reason, self.row = stage, reason[:MAX_REASON], None


class RecordProcessor:
    """Takes one source record through reading, annotation, parsing and the audit."""

    def __init__(self, config: PrepareConfig, source: Source):
        self._config, self._source = config, source
        self._severity = config.audit.resolved()
        self._questions: EvaluationQuestions | None = None
        if config.audit.decontaminate is not None:
            self._questions = EvaluationQuestions(config.audit.decontaminate, config.audit.decontaminate_ngram)
        self._annotator = OwnAnnotator()
        self._image_root: Path | None = source.image_root if isinstance(source, ImageFolderSource) else None

    def __call__(self, index: int) -> Outcome:
        settings = self._config.source
        name = settings.name or self._source.name
        outcome = Outcome(index, default_id(name, index))
        stage = "read"
        try:
            raw = self._source[index]
            stage = "record"
            if not isinstance(raw, Mapping):
                raise RecordError(f"a record must be a mapping, not {type(raw).__name__}")
            if isinstance(raw.get("id"), str):  # for the report, should the record not parse
                outcome.id = raw["id"][:MAX_ID]
            annotated = {**raw, "privileged": self._annotator.annotate(raw)}
            record = parse_record(
                annotated,
                index=index,
                source=name,
                image_root=self._image_root,
                default_task=settings.default_task,
                box_format=settings.box_format,
                limits=self._config.images,
            )
        except ImageError as error:
            outcome.set_aside("image", str(error))
            return outcome
        except RecordError as error:
            outcome.set_aside(stage, str(error))
            return outcome
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise PrepareError(f"record {index} of source {self._source.name!r}: the source failed, {what}") from error
        outcome.id, outcome.row, outcome.digest = record.id, record.row(), record.content_digest()
        reason, outcome.findings = judge(check_record(record, self._config.audit, self._questions), self._severity)
        if reason is not None:
            outcome.set_aside("audit", reason)
            return outcome
        if self._severity["near_duplicate"] != "ignore":
            text = user_text(record.prompt)
            outcome.signature = signature(text)
            outcome.near_keys = near_keys(text, record.image_digest(), outcome.signature)
        example = record.example()
        outcome.variants = [name for name, variant in VARIANTS.items() if variant.missing(example) is None]
        return outcome


def outcomes(
    config: PrepareConfig, source: Source, factory: SourceFactory, indices: Sequence[int]
) -> Generator[Outcome, None, None]:
    """The outcome of each source record, in the order of `indices`, whatever the number of workers."""
    if config.workers == 0:
        yield from map(RecordProcessor(config, source), indices)
        return
    # Fresh processes, not forks: this one may hold threads and locks (progress bar, arrow).
    pool = ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn"), _start_worker, (config, factory))
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for start in range(0, len(indices), BATCH):
            waiting.append(pool.submit(_work, list(indices[start : start + BATCH])))
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


def _work(indices: list[int]) -> list[Outcome]:
    assert _worker is not None
    return [_worker(index) for index in indices]
