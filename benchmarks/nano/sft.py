"""Supervised training of the nano families: prompts as `dopd_vl.views` shows them, loss on the response alone."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dopd_vl.nano.source import NanoSource
from dopd_vl.views import Request, View, ViewProcessor

# What a training prompt shows. Never a wrong hint, which would teach to distrust hints, and never a degraded image,
# which would teach to make digits up: those two are for controls.
MIXTURES: dict[str, dict[str, float]] = {
    "vision": {
        "none": 0.45,
        "box_label": 0.25,
        "box_caption": 0.02,
        "box_only": 0.02,
        "box_drawn": 0.05,
        "evidence_crop": 0.04,
        "caption": 0.05,
        "hints": 0.04,
        "hints_executed": 0.03,
        "hint_summary": 0.03,
        "final_answer": 0.02,
    },
    "text": {"none": 0.45, "hints": 0.25, "hints_executed": 0.1, "hint_summary": 0.1, "final_answer": 0.1},
}


@dataclass(frozen=True)
class Phase:
    """`steps` updates on `rows` records of some task kinds (None: all), shown in the variants of a mixture.

    Rows are made once and shuffled anew for every epoch: to make a view takes as long as to train on it.
    """

    steps: int
    rows: int
    mixture: Mapping[str, float]
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """One supervised run. A student is the same recipe with fewer steps."""

    phases: tuple[Phase, ...]
    sight_steps: int = 0  # vision: updates of the tower alone beforehand, see eyes.py
    frozen_sight: bool = False  # vision: the tower learns nothing after those
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 50

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True)
class Step:
    """What `train` reports after an update; loss in nats per response token."""

    number: int
    loss: float
    learning_rate: float
    examples_per_second: float


Row = tuple[View, list[int]]
RENDERED_TOGETHER = 64


def make_rows(
    phase: Phase, world: str, views: ViewProcessor, seed: int, on_row: Callable[[], None] = lambda: None
) -> list[Row]:
    """A phase's records of the train split, each in a variant drawn by (seed, its index), with its response's ids."""
    tasks = None if phase.tasks is None else list(phase.tasks)
    source = NanoSource({"world": world, "size": phase.rows, "seed": seed, "tasks": tasks})
    rows: list[Row] = []
    for start in range(0, len(source), RENDERED_TOGETHER):
        indices = range(start, min(start + RENDERED_TOGETHER, len(source)))
        pairs = [source.record_and_response(index) for index in indices]
        requests = [
            Request(record, _variant(phase.mixture, f"{seed}/{index}"))
            for index, (record, _) in zip(indices, pairs, strict=True)
        ]
        for view, (_, response) in zip(views.view_all(requests), pairs, strict=True):
            if isinstance(view, ValueError):
                raise view
            rows.append((replace(view, images=[]), response_ids(response, views)))  # the pictures are in pixel_values
            on_row()
    return rows


def _variant(mixture: Mapping[str, float], seed: str) -> str:
    return random.Random(seed).choices(list(mixture), list(mixture.values()))[0]


def response_ids(response: str, views: ViewProcessor) -> list[int]:
    """A response's tokens, ended as a chat turn ends."""
    return [*views.tokenizer(response, add_special_tokens=False)["input_ids"], views.tokenizer.eos_token_id]


def train(
    model: PreTrainedModel,
    views: ViewProcessor,
    recipe: Recipe,
    rows: Sequence[Sequence[Row]],
    seed: int,
    on_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """Train in place on each phase's rows in turn: AdamW, warm-up, one cosine to zero, gradients clipped to norm 1."""
    if recipe.frozen_sight:
        body: Any = model.model
        body.visual.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    model.train()
    start = time.monotonic()
    for number, batch in enumerate(_batches(rows, recipe, seed), start=1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(number, recipe)
        loss = sum(_backward(model, micro, tokens, views) for micro, tokens in _micro_batches(batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        speed = number * recipe.batch / (time.monotonic() - start)
        on_step(Step(number, loss, optimizer.param_groups[0]["lr"], speed))


def schedule(number: int, recipe: Recipe) -> float:
    """The share of the learning rate at update `number` (from 1): a linear warm-up, then a cosine to zero."""
    if number < recipe.warmup:
        return number / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (number - recipe.warmup) / max(1, recipe.steps - recipe.warmup)))


def _batches(rows: Sequence[Sequence[Row]], recipe: Recipe, seed: int) -> Iterator[list[Row]]:
    for number, (phase, phase_rows) in enumerate(zip(recipe.phases, rows, strict=True)):
        yield from _shuffled(phase_rows, recipe.batch, phase.steps, random.Random(f"{seed}/{number}"))


def _shuffled(rows: Sequence[Row], batch: int, steps: int, rng: random.Random) -> Iterator[list[Row]]:
    """`steps` batches, every row once before any comes again."""
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < batch:
            queue = [*rng.sample(range(len(rows)), len(rows)), *queue]
        yield [rows[queue.pop()] for _ in range(batch)]


def _micro_batches(batch: list[Row]) -> Iterator[tuple[list[Row], int]]:
    """(rows of like length, response tokens of the whole batch): prompts with boxes are far longer than others."""
    tokens = sum(len(ids) for _, ids in batch)
    micro: list[Row] = []
    for row in sorted(batch, key=lambda row: len(row[0].prompt_ids)):
        if micro and len(row[0].prompt_ids) > 1.5 * len(micro[0][0].prompt_ids):
            yield micro, tokens
            micro = []
        micro.append(row)
    yield micro, tokens


def _backward(model: PreTrainedModel, micro: Sequence[Row], batch_tokens: int, views: ViewProcessor) -> float:
    loss = response_loss(model, micro, views) / batch_tokens
    loss.backward()
    return loss.item()


def response_loss(model: PreTrainedModel, rows: Sequence[Row], views: ViewProcessor) -> Tensor:
    """The summed cross-entropy of the response tokens of `rows`, in nats."""
    prompts, responses = zip(*rows, strict=True)
    inputs = views.collate(prompts, responses, views.tokenizer.pad_token_id)
    longest = max(len(ids) for ids in responses)
    targets = torch.tensor([[*ids, *[-100] * (longest - len(ids))] for ids in responses])
    logits = model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
