"""Annotation runs ahead of the writer, in a thread and an event loop of its own and in whatever order replies come.

The writer takes annotations in the order of the records. What is ready before its turn waits on disk, so a slow record
holds up neither the requests of others nor memory. The store is scratch: after a kill it is made again from the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import PrepareError
from privileged.annotators.annotation import Annotation, RecordAnnotator
from privileged.annotators.asking import Asker, BudgetSpent
from privileged.annotators.cache import ReplyCache
from privileged.annotators.detector import DetectorGenerator, detector_identity
from privileged.annotators.endpoint import EndpointGenerator
from privileged.annotators.local import LocalGenerator, model_identity
from privileged.annotators.outage import FAILURES_ALLOWED
from privileged.annotators.prompts import fingerprint as prompts_fingerprint
from privileged.annotators.prompts import load_prompts
from privileged.annotators.requests import Generator
from privileged.annotators.settings import AnnotateConfig
from privileged.audit.audit import AuditConfig
from privileged.records.records import Record

OPEN_RECORDS = 2
"""Records under way for each request that may be in flight: enough that some are always ready to send."""

LEAST_OPEN_RECORDS = FAILURES_ALLOWED + 4
"""Enough that an outage shows in those under way."""


def annotation_fingerprint(settings: AnnotateConfig) -> list[Any]:
    """Of everything that decides what the annotations are."""
    prompts = prompts_fingerprint(load_prompts(settings.prompts))
    model = model_identity(str(settings.model)) if settings.kind == "local" else settings.model
    detector = detector_identity(settings.detector) if settings.detector is not None else None
    return [settings.content(), prompts, model, detector]


def build_generators(settings: AnnotateConfig) -> tuple[Generator | None, Generator | None]:
    """The model and the detector that a configuration names."""
    detector = DetectorGenerator(settings.detector) if settings.detector is not None else None
    if settings.kind == "detector":
        return None, detector
    return (EndpointGenerator if settings.kind == "endpoint" else LocalGenerator)(settings), detector


class AnnotationAhead:
    """Starts at once; `take` gives the annotation of one record after another.

    Args:
        read: The record with an index, or None when it is set aside whatever is added to it. Called in one thread.
        indices: The records, in the order in which they will be taken.
        cache: The folder of the replies.
        scratch: A file for what is ready before its turn.
        say: Told when requests have to be repeated.
    """

    def __init__(
        self,
        settings: AnnotateConfig,
        audit: AuditConfig,
        read: Callable[[int], Record | None],
        indices: Sequence[int],
        cache: Path,
        scratch: Path,
        say: Callable[[str], None],
    ):
        self._settings, self._read, self._indices, self._say = settings, read, indices, say
        self._prompts, self._audit = load_prompts(settings.prompts), audit
        self._generators = build_generators(settings)
        self._cache = ReplyCache(cache)
        self._ready = _Ready(scratch)
        self._changed = threading.Condition()
        self._ended = self._closing = False
        self._error: BaseException | None = None
        self._asker: Asker | None = None
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="annotation", daemon=True)
        self._thread.start()

    def take(self, index: int) -> Annotation:
        """Waits for the annotation of a record.

        Raises:
            PrepareError: annotation ended before it, for instance because the budget is spent.
        """
        with self._changed:
            while (annotation := self._ready.pop(index)) is None:
                if self._ended:
                    raise self._error or PrepareError("annotation was stopped")
                self._changed.wait()
        return annotation

    def spent(self) -> str:
        """The spend so far, for people."""
        return str(self._asker.spending) if self._asker is not None else "-"

    def close(self) -> None:
        """End annotation, finished or not."""

        def cancel() -> None:
            if self._main is not None:
                self._main.cancel()

        self._closing = True
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended in this very moment
                self._loop.call_soon_threadsafe(cancel)
            self._thread.join()
        self._cache.close()
        self._ready.close()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._annotate_all())
        except BaseException as error:
            self._error = error if not isinstance(error, asyncio.CancelledError) else None
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    async def _annotate_all(self) -> None:
        self._main = asyncio.current_task()
        if self._closing:  # it was closed before there was a task to cancel
            return
        model, detector = (
            Asker(generator, self._cache, self._settings, self._say) if generator is not None else None
            for generator in self._generators
        )
        askers = [asker for asker in (model, detector) if asker is not None]
        self._asker = askers[0]
        annotator = RecordAnnotator(self._settings, self._prompts, self._audit, model, detector)
        reader = ThreadPoolExecutor(1, "records")
        try:
            await self._feed(annotator, reader, askers)
        finally:
            reader.shutdown(wait=True)
            for asker in askers:
                await asker.close()

    async def _feed(self, annotator: RecordAnnotator, reader: ThreadPoolExecutor, askers: list[Asker]) -> None:
        """Keep records under way until none is left or one ends the run."""
        loop = asyncio.get_running_loop()
        open_records = max(LEAST_OPEN_RECORDS, OPEN_RECORDS * max(asker.concurrency for asker in askers))
        under_way: set[asyncio.Task[None]] = set()
        error: BaseException | None = None
        try:
            for index in self._indices:
                while len(under_way) >= open_records and error is None:
                    error = await self._settle(under_way, askers)
                if error is not None:
                    break
                record = await loop.run_in_executor(reader, self._read, index)
                if record is None:
                    self._put(index, Annotation())
                else:
                    under_way.add(asyncio.create_task(self._one(annotator, index, record)))
                del record  # the task holds it; here it would outlive the task
            while under_way and (error is None or isinstance(error, BudgetSpent)):
                # At the end of the budget the others end too, but what they have asked for is awaited and kept.
                error = await self._settle(under_way, askers) or error
        finally:
            # After an error or Ctrl-C. They must end before the cache that they write to is closed.
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        if error is not None:
            raise error

    async def _settle(self, under_way: set[asyncio.Task[None]], askers: list[Asker]) -> BaseException | None:
        """Wait until a record is done; the error that ends the run, if that is how it was done."""
        for asker in askers:
            asker.outage.feeding(False)
        done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for asker in askers:
            asker.outage.feeding(True)
        under_way -= done
        errors = [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
        return errors[0] if errors else None

    async def _one(self, annotator: RecordAnnotator, index: int, record: Record) -> None:
        self._put(index, await annotator.annotate(record))

    def _put(self, index: int, annotation: Annotation) -> None:
        with self._changed:
            self._ready.put(index, annotation)
            self._changed.notify_all()


class _Ready:
    """Annotations by record, on disk until they are taken. Its callers hold a lock."""

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE ready (record INTEGER PRIMARY KEY, annotation TEXT)")

    def put(self, index: int, annotation: Annotation) -> None:
        text = json.dumps(dataclasses.asdict(annotation))
        self._database.execute("INSERT INTO ready VALUES (?, ?)", (index, text))

    def pop(self, index: int) -> Annotation | None:
        row = self._database.execute("SELECT annotation FROM ready WHERE record = ?", (index,)).fetchone()
        if row is None:
            return None
        self._database.execute("DELETE FROM ready WHERE record = ?", (index,))
        return Annotation(**json.loads(row[0]))

    def close(self) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)
