"""The rollouts that a run keeps for a person to read: what each policy saw and said, and what the student was taught.

A generation batch passes through here twice: when it is scored, `keep_rollouts` takes the few numbers a token that are
to be kept; when its slices are learned from, each rollout `learned` what its tokens cost. `rollout_records` then makes
rows of rollouts.jsonl of them. One process keeps them and all others wait for it: until rows are written, the numbers
stay in tensors where they were computed, and nothing goes token by token.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopd_vl.core import Projection, Source, score_tokens
from dopd_vl.objectives import Decision, Scores
from dopd_vl.objectives.common import PLAIN_STUDENT
from dopd_vl.run_folder.kept_images import save_image
from dopd_vl.views import View
from dopd_vl.views.rollouts import ViewRenderer
from privileged.records.images import load_image
from privileged.rendering.boxes import to_grid
from privileged.rendering.render import privilege
from privileged.rendering.variants import VARIANTS

ALTERNATIVES = 5
"""Likeliest tokens of a policy that are kept at each place, at most."""
LEAST_PROBABILITY = 0.001
"""A less likely token is no alternative that a reader would look for."""

Likeliest = tuple[Tensor, Tensor]
"""The likeliest tokens at each place and their log-probabilities, `[R, N, A]` each."""


@dataclass(frozen=True)
class KeptRollout:
    """One rollout, but for the numbers of its tokens."""

    example: Mapping[str, Any]
    response: Sequence[int]
    text: str
    correct: bool | None
    views: Mapping[Source, View]
    """what each policy saw"""


@dataclass(frozen=True)
class KeptRollouts:
    """R rollouts of a generation batch, and numbers of their tokens, N at most."""

    rollouts: Mapping[int, KeptRollout] = field(default_factory=dict)
    """by their place in the batch"""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> `[R, N]`"""
    likeliest: Mapping[Source, Likeliest] = field(default_factory=dict)
    """of each policy"""
    looks: bool = False
    """whether the plain student is looked at where it learns: the objective did not have it scored"""

    def __iter__(self) -> Iterator[KeptRollout]:
        return iter(self.rollouts.values())

    def __len__(self) -> int:
        return len(self.rollouts)

    def learned(
        self, places: Sequence[int], token_loss: Tensor, student: Projection, response_ids: Tensor, mask: Tensor
    ) -> None:
        """Add what the student learned from a slice of b rollouts, of n tokens at most.

        Args:
            places: `[b]`, of each rollout in the batch.
            token_loss: `[b, n]`, weighted.
            student: `[b, n, H]` and its head.
            response_ids: `[b, n]`.
            mask: `[b, n]` bool.
        """
        numbers = {place: number for number, place in enumerate(self.rollouts)}
        rows = [row for row, place in enumerate(places) if place in numbers]
        if not rows:
            return
        there, tokens = [numbers[places[row]] for row in rows], slice(token_loss.shape[1])
        self.columns["loss"][there, tokens] = token_loss[rows].float()
        if self.looks:
            constant = student.constant()
            projection = constant._replace(hidden=constant.hidden[rows])
            found = score_tokens(projection, response_ids[rows], mask[rows], ALTERNATIVES)
            self.columns[f"logp/{PLAIN_STUDENT}"][there, tokens] = found.logp.float()
            for kept, values in zip(self.likeliest[PLAIN_STUDENT], (found.top_k_ids, found.top_k_logp), strict=True):
                kept[there, tokens, : values.shape[-1]] = values.to(kept.dtype)

    def to_host(self) -> Iterator[tuple[dict[str, np.ndarray], dict[Source, tuple[np.ndarray, np.ndarray]]]]:
        """Of each rollout of n tokens its columns, `[n]`, and likeliest tokens, `[n, A]`; one copy from the device."""
        every = [
            *(values.unsqueeze(-1) for values in self.columns.values()),
            *itertools.chain(*self.likeliest.values()),
        ]
        # fp32 holds the ids, too: they are whole numbers below 2^24.
        packed = torch.cat([values.float() for values in every], dim=-1).cpu().numpy()
        kinds = [torch.empty(0, dtype=values.dtype).numpy().dtype for values in every]
        ends = np.cumsum([values.shape[-1] for values in every])
        for rollout, numbers in zip(self, packed, strict=True):
            parts = np.split(numbers[: len(rollout.response)], ends[:-1], axis=-1)
            parts = [part.astype(kind) for part, kind in zip(parts, kinds, strict=True)]
            single, pairs = parts[: len(self.columns)], iter(parts[len(self.columns) :])
            yield (
                {name: values[:, 0] for name, values in zip(self.columns, single, strict=True)},
                {source: (next(pairs), next(pairs)) for source in self.likeliest},
            )


def keep_rollouts(
    rows: Sequence[int],
    examples: Sequence[Mapping[str, Any]],
    views: Mapping[Source, Sequence[View]],
    responses: Sequence[Sequence[int]],
    texts: Sequence[str],
    correct: Sequence[bool | None],
    scores: Scores,
    decision: Decision,
) -> KeptRollouts:
    """The chosen rows of a batch of B rollouts."""
    if not rows:
        return KeptRollouts()
    chosen = torch.tensor(rows, device=scores.response_mask.device)
    tokens = {
        **{f"logp/{source}": policy.logp for source, policy in scores.policies.items()},
        **decision.per_token,
        "weight": torch.stack([term.weight for term in decision.plan.terms]).sum(0),
    }
    columns = {name: values[chosen] for name, values in tokens.items()}
    likeliest = {}
    for source, policy in scores.policies.items():
        few = (policy.top_k_ids[..., :ALTERNATIVES], policy.top_k_logp[..., :ALTERNATIVES])
        ids, logp = (values[chosen.to(values.device)].to(chosen.device) for values in few)
        likeliest[source] = (ids, logp)
    looks = PLAIN_STUDENT not in likeliest
    nothing = torch.full((len(rows), scores.response_mask.shape[1]), torch.nan, device=chosen.device)
    if looks:
        columns[f"logp/{PLAIN_STUDENT}"] = nothing.clone()
        unlikely = torch.full((*nothing.shape, ALTERNATIVES), -torch.inf, device=chosen.device)
        likeliest[PLAIN_STUDENT] = (torch.zeros_like(unlikely, dtype=torch.int32), unlikely)
    columns["loss"] = nothing
    return KeptRollouts(
        rollouts={
            b: KeptRollout(
                example=examples[b],
                response=responses[b],
                text=texts[b],
                correct=correct[b],
                views={source: of_source[b] for source, of_source in views.items()},
            )
            for b in rows
        },
        columns=columns,
        likeliest=likeliest,
        looks=looks,
    )


def rollout_records(kept: KeptRollouts, renderer: ViewRenderer, images_folder: Path) -> list[dict[str, Any]]:
    """Rows of rollouts.jsonl; the images that they name are written before they are returned.

    What an earlier row has of the same example (its image, a policy's view) is not said again.
    """
    numbers = list(kept.to_host())
    said = [np.asarray(rollout.response) for rollout in kept]
    said += [ids[_is_likely(logp)] for _, likeliest in numbers for ids, logp in likeliest.values()]
    different = np.unique(np.concatenate(said))
    # In one call: token by token this took longer than everything else that is done here.
    decoded = renderer.views.tokenizer.decode(different[:, None])
    texts = dict(zip(different.tolist(), decoded, strict=True))
    records = []
    known: dict[str, dict[Source, View]] = {}
    for rollout, (columns, likeliest) in zip(kept, numbers, strict=True):
        before = known.setdefault(str(rollout.example["id"]), {})
        new = {source: view for source, view in rollout.views.items() if before.get(source) is not view}
        first = not before
        before |= new
        records.append(
            {
                "id": str(rollout.example["id"]),
                "response": rollout.text,
                "correct": rollout.correct,
                "answer": rollout.example.get("answer"),
                "illusion_score": rollout.example.get("illusion_score"),
                "tokens": [texts[token] for token in rollout.response],
                **{name: _rounded(values, 4).tolist() for name, values in columns.items()},
                "alternatives": {str(source): _alternatives(*pair, texts) for source, pair in likeliest.items()},
                **(_what_was_seen(rollout, new, first, renderer, images_folder) if new else {}),
            }
        )
    return records


def _alternatives(ids: np.ndarray, logp: np.ndarray, texts: Mapping[int, str]) -> list[list[tuple[str, float]]]:
    """At each of n places the tokens that are likely enough, each with its probability, likeliest first."""
    likely = _is_likely(logp)
    pairs = zip(map(texts.__getitem__, ids[likely].tolist()), _rounded(np.exp(logp[likely]), 3).tolist(), strict=True)
    return [list(itertools.islice(pairs, few)) for few in likely.sum(-1).tolist()]


def _is_likely(logp: np.ndarray) -> np.ndarray:
    return _rounded(np.exp(logp), 3) >= LEAST_PROBABILITY


def _rounded(values: np.ndarray, digits: int) -> np.ndarray:
    """In fp64, in which what was rounded is written with no more digits."""
    return values.astype(np.float64).round(digits) if values.dtype.kind == "f" else values


def _what_was_seen(
    rollout: KeptRollout, views: Mapping[Source, View], first: bool, renderer: ViewRenderer, folder: Path
) -> dict[str, Any]:
    """The views, those that several policies share once; with the first ones the example's images and boxes."""
    example = rollout.example
    images = [load_image(image).image for image in example.get("images") or []]
    shared: dict[int, list[Source]] = {}
    for source, view in views.items():
        shared.setdefault(id(view), []).append(source)
    seen: dict[str, Any] = {}
    if first and images:
        seen["images"] = [save_image(image, folder) for image in images]
        seen["boxes"] = [
            {"label": box["label"], "image": number, "bbox": list(to_grid(box["bbox"], *images[number].size))}
            for box in privilege(example, "boxes") or []
            if 0 <= (number := box.get("image") or 0) < len(images)
        ]
    seen["views"] = []
    for sources in shared.values():
        view = views[sources[0]]
        variant = renderer.variant_of(example, sources[0])
        entry = {
            "sources": [str(source) for source in sources],
            "variant": variant,
            "prompt": prompt_text(view, renderer.views.tokenizer),
        }
        seen_of = renderer.with_another({**example, "images": images}, variant)
        shown = VARIANTS[variant].render(seen_of).images if variant in VARIANTS else images
        if [id(image) for image in shown] != [id(image) for image in images]:
            entry["images"] = [save_image(image, folder) for image in shown]
        seen["views"].append(entry)
    return seen


def prompt_text(view: View, tokenizer: Any) -> str:
    """The prompt as the policy had it, control tokens and all; the places of an image are told in words."""
    kinds = view.mm_token_type_ids or [0] * len(view.prompt_ids)
    parts = []
    for is_image, run in itertools.groupby(zip(view.prompt_ids, kinds, strict=True), key=lambda place: place[1] != 0):
        ids = [token for token, _ in run]
        parts.append(f"[image: {len(ids)} tokens]" if is_image else tokenizer.decode(ids))
    return "".join(parts)
