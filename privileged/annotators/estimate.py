"""What an annotation will cost, from the rendered prompts of a sample of records and stated assumptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privileged.annotators.parts import (
    ASSUMED_BOX_TOKENS,
    ASSUMED_VERDICT_TOKENS,
    TEXT_PARTS,
    generation_requests,
    prompt_values,
    wanted_parts,
)
from privileged.annotators.prompts import Prompt, load_prompts
from privileged.annotators.requests import CHARACTERS_IN_TOKEN, Request
from privileged.annotators.settings import AnnotateConfig
from privileged.annotators.spending import money
from privileged.records.records import Record

SAMPLE = 50


@dataclass
class Estimate:
    """Of a whole preparation: `requests` and tokens for `records`, scaled up from `sampled` of them."""

    settings: AnnotateConfig
    records: int
    sampled: int
    requests: float = 0
    prompt_tokens: float = 0
    reply_tokens: float = 0

    def lines(self) -> list[str]:
        budget = self.settings.budget
        total = self.prompt_tokens + self.reply_tokens
        cost = ""
        if budget.price_input or budget.price_output:
            cost = f", {money(budget, self.prompt_tokens, self.reply_tokens):.2f} at the prices given"
        lines = [
            f"annotation of {self.records:,} records: about {self.requests:,.0f} requests, {total:,.0f} tokens "
            f"({self.prompt_tokens:,.0f} of prompts, {self.reply_tokens:,.0f} of replies){cost}",
            f"(from {self.sampled} records; assumed: {CHARACTERS_IN_TOKEN:g} characters a token, one token for 32 x 32 "
            "pixels, replies of the usual length without thinking, no second tries, nothing in the cache)",
        ]
        if budget.tokens is not None and total > budget.tokens:
            lines.append(f"this is more than the budget of {budget.tokens:,} tokens: the run will stop there")
        if budget.money is not None and money(budget, self.prompt_tokens, self.reply_tokens) > budget.money:
            lines.append(f"this is more than the budget of {budget.money:.2f}: the run will stop there")
        return lines


def estimate(settings: AnnotateConfig, read: Callable[[int], Record | None], indices: Sequence[int]) -> Estimate:
    """Renders the prompts of up to `SAMPLE` records, evenly spaced, and scales up.

    Args:
        read: As for `AnnotationAhead`; records that are set aside cost nothing.
    """
    prompts = load_prompts(settings.prompts)
    count = min(SAMPLE, len(indices))
    sample = [indices[len(indices) * number // count] for number in range(count)]
    result = Estimate(settings, len(indices), count)
    for index in sample:
        record = read(index)
        if record is not None:
            _add(result, record, settings, prompts)
    scale = len(indices) / max(count, 1)
    result.requests *= scale
    result.prompt_tokens *= scale
    result.reply_tokens *= scale
    return result


def _add(result: Estimate, record: Record, settings: AnnotateConfig, prompts: dict[str, Prompt]) -> None:
    for part in wanted_parts(record, settings):
        free = part == "boxes" and settings.detector is not None
        assumed = ASSUMED_BOX_TOKENS * len(record.images) if part == "boxes" else TEXT_PARTS[part].assumed_tokens
        if not free:
            requests = generation_requests(record, part, prompts, 0)
            result.requests += len(requests)
            result.prompt_tokens += sum(request.prompt_tokens() for request in requests)
            result.reply_tokens += assumed
        if settings.recheck and settings.kind != "detector":
            result.requests += 1
            result.prompt_tokens += _check_tokens(record, prompts[f"check_{part}"], assumed)
            result.reply_tokens += ASSUMED_VERDICT_TOKENS


def _check_tokens(record: Record, prompt: Prompt, candidate_tokens: int) -> int:
    user = prompt.fill({**prompt_values(record), "candidate": ""})
    return Request(prompt.system, user, tuple(record.images), 0).prompt_tokens() + candidate_tokens
