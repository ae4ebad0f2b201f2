"""The parts that can be asked for: how each is asked, read, and shown to its check."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dopd_vl.common.errors import RecordError
from privileged.annotators import replies
from privileged.annotators.prompts import Prompt, question_text
from privileged.annotators.requests import Reply, Request
from privileged.annotators.settings import IMAGE_PARTS, AnnotateConfig
from privileged.records.code_tests import first_tests
from privileged.records.records import Record
from privileged.rendering.boxes import grounding_json


@dataclass(frozen=True)
class Part:
    """How a text part is read from a reply and written for its check, and how long replies are assumed to be."""

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    assumed_tokens: int


def _as(key: str) -> Callable[[Any], str]:
    return lambda value: json.dumps({key: value}, ensure_ascii=False)


TEXT_PARTS: dict[str, Part] = {
    "hints": Part(replies.hint_list, _as("hints"), 120),
    "hints_executed": Part(replies.hint_list, _as("hints"), 200),
    "hint_summary": Part(replies.one_hint, _as("hint"), 40),
    "caption": Part(replies.caption, _as("caption"), 150),
    "wrong_hint": Part(replies.one_hint, _as("hint"), 40),
}
ASSUMED_BOX_TOKENS = 100
ASSUMED_VERDICT_TOKENS = 40
"""Tokens that replies are assumed to have, for estimates. Boxes are for each image."""


def wanted_parts(record: Record, settings: AnnotateConfig) -> list[str]:
    """What is to be made for a record: not what the source brings, and no boxes or caption without an image."""
    return [
        part
        for part in settings.parts
        if (record.images or part not in IMAGE_PARTS) and (settings.replace or not record.privileged.get(part))
    ]


def generation_requests(record: Record, part: str, prompts: Mapping[str, Prompt], seed: int) -> list[Request]:
    """One request, or for boxes one for each image: a model's grounding speaks of a single image."""
    values, prompt, images = prompt_values(record), prompts[part], record.images
    if part != "boxes":
        return [Request(prompt.system, prompt.fill(values), tuple(images), seed, values["question"])]
    requests = []
    for number, stored in enumerate(images, start=1):
        shown = f"{values['question']}\n\n(The picture here is image {number} of {len(images)}.)"
        user = prompt.fill({**values, "question": shown} if len(images) > 1 else values)
        requests.append(Request(prompt.system, user, (stored,), seed, values["question"]))
    return requests


def check_request(record: Record, part: str, value: Any, prompt: Prompt, seed: int) -> Request:
    """Shows a part to a model by the prompt of a check, with all images."""
    values = {**prompt_values(record), "candidate": candidate_text(record, part, value)}
    return Request(prompt.system, prompt.fill(values), tuple(record.images), seed, values["question"])


def candidate_text(record: Record, part: str, value: Any) -> str:
    if part == "boxes":
        return grounding_json(value, [stored.size for stored in record.images])
    return TEXT_PARTS[part].write(value)


def replied_text(reply: Reply) -> str:
    """What a reply says; RecordError where it cannot be used."""
    if reply.problem is not None:
        raise RecordError(reply.problem)
    return reply.text


def prompt_values(record: Record) -> dict[str, str]:
    """What fills the places of a prompt. The tests of a coding task may be megabytes: the first few stand for them."""
    answer = first_tests(record.answer) if record.task == "code" else record.answer
    return {"question": question_text(record.prompt, len(record.images)), "answer": answer}
