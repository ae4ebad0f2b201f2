"""Annotation and the judge run ahead of the writer, in a thread and an event loop of their own, as replies come.

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

from dopd_vl.common.digests import digest_json
from dopd_vl.common.errors import PrepareError
from privileged.annotators.annotation import Annotation, RecordAnnotator, replied_boxes
from privileged.annotators.asking import Asker, BudgetSpent
from privileged.annotators.cache import ReplyCache
from privileged.annotators.coordinates import FIRST_REPLIES, Replied, likeliest_coordinates
from privileged.annotators.detector import DetectorGenerator, FunctionGenerator, function_identity
from privileged.annotators.endpoint import EndpointGenerator
from privileged.annotators.judging import RecordJudge, build_judge
from privileged.annotators.local import LocalGenerator, model_identity
from privileged.annotators.outage import FAILURES_ALLOWED
from privileged.annotators.parts import wanted_parts
from privileged.annotators.prompts import fingerprint as prompts_fingerprint
from privileged.annotators.prompts import load_prompts
from privileged.annotators.requests import Generator, Reply
from privileged.annotators.settings import COORDINATES, AnnotateConfig
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
    if settings.kind == "function":
        model = function_identity(str(settings.model), "annotate.model")
    detector = function_identity(settings.detector, "annotate.detector") if settings.detector is not None else None
    return [settings.content(), prompts, model, detector]


def build_generators(settings: AnnotateConfig) -> tuple[Generator | None, Generator | None]:
    """The model and the detector that a configuration names."""
    detector = DetectorGenerator(settings.detector) if settings.detector is not None else None
    if settings.kind == "detector":
        return None, detector
    if settings.kind == "function":
        return FunctionGenerator(str(settings.model)), detector
    return (EndpointGenerator if settings.kind == "endpoint" else LocalGenerator)(settings), detector


class AnnotationAhead:
    """Starts at once; `take` gives the annotation of one record after another.

    Args:
        settings: Of annotation; None where nothing is to be made, and the records are only judged.
        audit: What is found in what was made, and the model that judges, where there is one.
        read: The record with an index, or None when it is set aside whatever is added to it. Called in one thread.
        indices: The records, in the order in which they will be taken.
        output: The folder that is made; its name is the default for the caches'.
        scratch: The folder for what is ready before its turn.
        say: Told when requests have to be repeated.
    """

    def __init__(
        self,
        settings: AnnotateConfig | None,
        audit: AuditConfig,
        read: Callable[[int], Record | None],
        indices: Sequence[int],
        output: Path,
        scratch: Path,
        say: Callable[[str], None],
    ):
        self._settings, self._audit, self._judge = settings, audit, audit.model
        self._read, self._indices, self._say = read, indices, say
        self._prompts = load_prompts(settings.prompts if settings is not None else None)
        self._generators = build_generators(settings) if settings is not None else (None, None)
        self._judging = build_judge(self._judge) if self._judge is not None else None
        self._caches = {
            config.KEY: ReplyCache(config.cache_folder(output), f"{config.KEY}.cache", say)
            for config in (self._settings, self._judge)
            if config is not None
        }
        self._ready = _Ready(scratch / "ahead.sqlite")
        self._changed = threading.Condition()
        self._ended = self._closing = False
        self._error: BaseException | None = None
        self._askers: dict[str, Asker] = {}
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
        spent = {"annotation" if key == "annotate" else "judge": asker.spending for key, asker in self._askers.items()}
        return "; ".join(f"{name}: {spending}" for name, spending in spent.items()) or "-"

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
        for cache in self._caches.values():
            cache.close()
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
        annotator = model = detector = judge = None
        askers = []
        if self._settings is not None:
            model, detector = (
                Asker(generator, self._caches[self._settings.KEY], self._settings, self._say) if generator else None
                for generator in self._generators
            )
            askers += [asker for asker in (model, detector) if asker is not None]
            self._askers[self._settings.KEY] = askers[0]
        if self._judge is not None and self._judging is not None:
            askers.append(Asker(self._judging, self._caches[self._judge.KEY], self._judge, self._say))
            self._askers[self._judge.KEY] = askers[-1]
            judge = RecordJudge(self._audit, askers[-1])
        reader = ThreadPoolExecutor(1, "records")
        try:
            if self._settings is not None:
                settings = await self._with_coordinates(self._settings, model, reader)
                annotator = RecordAnnotator(settings, self._prompts, self._audit, model, detector)
            await self._feed(annotator, judge, reader, askers)
        finally:
            reader.shutdown(wait=True)
            for asker in askers:
                await asker.close()

    async def _with_coordinates(
        self, settings: AnnotateConfig, model: Asker | None, reader: ThreadPoolExecutor
    ) -> AnnotateConfig:
        """The settings with the coordinates that the model's first replies show, where they are `auto`."""
        generator = self._generators[0]
        if settings.coordinates != "auto" or settings.detector is not None or model is None or generator is None:
            return settings
        cache = self._caches[settings.KEY]
        key = digest_json(["coordinates", generator.identity(), repr(self._prompts["boxes"])])
        if (known := cache.find(key)) is None:
            boxes: list[Replied] = []
            asked = replies = 0
            model.outage.feeding(False)  # one record after another: no other request comes until this one is done
            for index in self._indices:
                record = await asyncio.get_running_loop().run_in_executor(reader, self._read, index)
                if record is not None and "boxes" in wanted_parts(record, settings):
                    found = await replied_boxes(record, model, self._prompts, settings.sampling.seed)
                    boxes, asked, replies = boxes + found, asked + 1, replies + bool(found)
                if replies == FIRST_REPLIES:
                    break
            model.outage.feeding(True)
            if not asked:
                return settings
            chosen, told = likeliest_coordinates(boxes)
            if chosen is None:
                raise PrepareError(
                    f"annotate.coordinates: the first replies leave open what their numbers are ({told}); name it: "
                    f"{', '.join(COORDINATES)}"
                )
            known = Reply(json.dumps([chosen, told]), 0, 0)
            cache.add(key, known)  # what follows a kill is read as what came before it
        chosen, told = json.loads(known.text)
        self._say(f"annotate.coordinates: {chosen}, as the first replies show ({told})")
        return dataclasses.replace(settings, coordinates=chosen)

    async def _feed(
        self,
        annotator: RecordAnnotator | None,
        judge: RecordJudge | None,
        reader: ThreadPoolExecutor,
        askers: list[Asker],
    ) -> None:
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
                    under_way.add(asyncio.create_task(self._one(annotator, judge, index, record)))
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

    async def _one(
        self, annotator: RecordAnnotator | None, judge: RecordJudge | None, index: int, record: Record
    ) -> None:
        annotation = await annotator.annotate(record) if annotator is not None else Annotation()
        optional = self._settings.optional if self._settings is not None else []
        if judge is not None and annotation.missing(optional) is None:
            record.privileged.update(annotation.parts)  # type: ignore[typeddict-item]
            judgement = await judge.judge(record)
            annotation.illusion_score = judgement.illusion_score
            annotation.judged = [[finding.code, finding.detail] for finding in judgement.findings]
        self._put(index, annotation)

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
