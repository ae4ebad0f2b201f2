"""What annotation makes of one record: each part asked for, read, audited and shown to the model again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dopd_vl.common.errors import RecordError
from dopd_vl.common.visible import visible
from privileged.annotators.asking import Asker, RequestFailed
from privileged.annotators.coordinates import Replied
from privileged.annotators.parts import TEXT_PARTS, check_request, generation_requests, replied_text, wanted_parts
from privileged.annotators.prompts import Prompt
from privileged.annotators.replies import verdict
from privileged.annotators.settings import AnnotateConfig
from privileged.audit.audit import AuditConfig, check_record, judge
from privileged.records.grounding import box_corners, grounded_boxes, pixel_boxes
from privileged.records.records import Record
from privileged.schema import empty_privileged

MAX_REASON = 1000


async def replied_boxes(record: Record, asker: Asker, prompts: Mapping[str, Prompt], seed: int) -> list[Replied]:
    """The boxes that a model replies with for a record, as they are; what cannot be had or read is left out."""
    boxes: list[Replied] = []
    for request, stored in zip(generation_requests(record, "boxes", prompts, seed), record.images, strict=True):
        with contextlib.suppress(RequestFailed, RecordError):
            corners = box_corners(replied_text(await asker.ask(request)))
            boxes += [(numbers, stored.size) for numbers in corners]
    return boxes


@dataclass
class Annotation:
    """The parts that were made for a record, and what was dropped: {part, try, stage, reason, value}.

    Stages: "request" (no reply came), "reply" (it could not be read), "audit" (the audit found something), "recheck"
    (the model called it poor). `value` is the dropped part, where there was one.
    """

    wanted: list[str] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    illusion_score: float | None = None
    """What `audit.model` measured, in nats, see `judging`."""
    judged: list[list[str]] = field(default_factory=list)
    """What it found: code and detail of each finding."""

    def missing(self, optional: list[str]) -> str | None:
        """Why the record cannot be kept: a part that is not optional could not be made."""
        reasons = [
            next(
                f"{part}: {drop['stage']}: {drop['reason']}" for drop in reversed(self.dropped) if drop["part"] == part
            )
            for part in self.wanted
            if part not in self.parts and part not in optional
        ]
        return "; ".join(reasons) or None

    def counts(self) -> dict[str, int]:
        """For the audit: how many were asked for, made, and dropped at which stage."""
        names = [f"{part} asked" for part in self.wanted] + [f"{part} made" for part in self.parts]
        names += [f"{drop['part']} dropped: {drop['stage']}" for drop in self.dropped]
        return {name: names.count(name) for name in names}


class RecordAnnotator:
    """Annotates records, any number of them at a time.

    Args:
        asker: Asks the model.
        detector: Makes the boxes in its place, where there is one.
    """

    def __init__(
        self,
        settings: AnnotateConfig,
        prompts: Mapping[str, Prompt],
        audit: AuditConfig,
        asker: Asker | None,
        detector: Asker | None,
    ):
        self._settings, self._prompts, self._audit = settings, prompts, audit
        self._asker, self._detector = asker, detector

    async def annotate(self, record: Record) -> Annotation:
        """All wanted parts of one record. Parts fail alone: only what ends the whole run is raised."""
        wanted = wanted_parts(record, self._settings)
        made = await asyncio.gather(*(self._part(record, part) for part in wanted))
        annotation = Annotation(wanted)
        for part, (value, dropped) in zip(wanted, made, strict=True):
            annotation.dropped += dropped
            if value is not None:
                annotation.parts[part] = value
        return annotation

    async def _part(self, record: Record, part: str) -> tuple[Any, list[dict[str, Any]]]:
        dropped: list[dict[str, Any]] = []

        def drop(number: int, stage: str, reason: str, value: Any = None) -> None:
            dropped.append(
                {
                    "part": part,
                    "try": number + 1,
                    "stage": stage,
                    "reason": visible(reason[:MAX_REASON]),
                    "value": value,
                }
            )

        # A detector finds the same boxes however often it is asked.
        tries = 1 if part == "boxes" and self._detector is not None else self._settings.tries
        for number in range(tries):
            value = None
            try:
                value = await self._make(record, part, self._settings.sampling.seed + number)
                if (reason := self._audited(record, part, value)) is not None:
                    drop(number, "audit", reason, value)
                    continue
                if self._settings.recheck and self._asker is not None:
                    prompt, seed = self._prompts[f"check_{part}"], self._settings.sampling.seed + number
                    request = check_request(record, part, value, prompt, seed)
                    good, reason = verdict(replied_text(await self._asker.ask(request)))
                    if not good:
                        drop(number, "recheck", reason, value)
                        continue
            except RequestFailed as error:
                drop(number, "request", str(error), value)
                break  # it was retried enough
            except RecordError as error:
                drop(number, "reply" if value is None else "recheck", str(error), value)
                continue
            return value, dropped
        return None, dropped

    async def _make(self, record: Record, part: str, seed: int) -> Any:
        requests = generation_requests(record, part, self._prompts, seed)
        if part != "boxes":
            assert self._asker is not None
            return TEXT_PARTS[part].read(replied_text(await self._asker.ask(requests[0])))
        asker = self._detector or self._asker
        assert asker is not None
        answers = await asyncio.gather(*(asker.ask(request) for request in requests), return_exceptions=True)
        boxes: list[dict[str, Any]] = []
        for number, (answer, stored) in enumerate(zip(answers, record.images, strict=True)):
            if isinstance(answer, BaseException):
                raise answer
            text = replied_text(answer)
            if self._detector is not None:
                boxes += pixel_boxes(text, stored.size, number)
            else:
                boxes += grounded_boxes(text, stored.size, number, self._settings.coordinates)
        if not boxes:
            raise RecordError("no box in any image")
        return boxes

    def _audited(self, record: Record, part: str, value: Any) -> str | None:
        """What the audit finds in a part that it does not find without it; of made parts nothing is let pass."""
        without = dataclasses.replace(record, findings=[], privileged=empty_privileged())
        with_part = dataclasses.replace(without, privileged=empty_privileged())
        with_part.privileged[part] = value  # type: ignore[literal-required]
        known = {finding.code for finding in check_record(without, self._audit)}
        _, findings = judge(check_record(with_part, self._audit), self._audit.resolved())
        reasons = [f"{finding.code}: {finding.detail}" for finding in findings if finding.code not in known]
        return "; ".join(reasons) or None
