"""The rollouts that a run keeps for a person to read: what each policy saw and said, and what the student was taught.

A generation batch passes through here twice: when it is scored, `keep_rollouts` takes the few numbers a token that are
to be kept; when its slices are learned from, each rollout `learned` what its tokens cost. `rollout_records` then makes
rows of rollouts.jsonl of them.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopd_vl.core import Source, TokenScores
from dopd_vl.core.projection import score_logits
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

_TOGETHER = 64
"""Tokens whose logits `[R, V]` are copied at a time: they come on top of the loss's own."""

Likeliest = tuple[list[list[int]], list[list[float]]]
"""At each of n places, the likeliest tokens and their log-probabilities."""


@dataclass
class KeptRollout:
    """One rollout of n response tokens, as plain numbers."""

    example: Mapping[str, Any]
    response: Sequence[int]
    text: str
    correct: bool | None
    views: Mapping[Source, View]
    """what each policy saw"""
    columns: dict[str, list[Any]]
    """name -> n numbers"""
    alternatives: dict[Source, Likeliest]


def keep_rollouts(
    rows: Sequence[int],
    examples: Sequence[Mapping[str, Any]],
    views: Mapping[Source, Sequence[View]],
    responses: Sequence[Sequence[int]],
    texts: Sequence[str],
    correct: Sequence[bool | None],
    scores: Scores,
    decision: Decision,
) -> dict[int, KeptRollout]:
    """The chosen rows of a batch of B rollouts, by their number in it."""
    if not rows:
        return {}
    tokens = {
        **{f"logp/{source}": policy.logp for source, policy in scores.policies.items()},
        **decision.per_token,
        "weight": torch.stack([term.weight for term in decision.plan.terms]).sum(0),
    }
    lengths = [len(responses[b]) for b in rows]
    columns = {name: _rows_of(values[list(rows)], lengths) for name, values in tokens.items()}
    likeliest = {
        source: _likeliest(policy.map(lambda tensor: tensor[list(rows)]), lengths)
        for source, policy in scores.policies.items()
    }
    return {
        b: KeptRollout(
            example=examples[b],
            response=responses[b],
            text=texts[b],
            correct=correct[b],
            views={source: of_source[b] for source, of_source in views.items()},
            columns={name: values[i] for name, values in columns.items()},
            alternatives={source: values[i] for source, values in likeliest.items()},
        )
        for i, b in enumerate(rows)
    }


class KeptSlice:
    """The kept rollouts of one slice of b rollouts, while the student learns from it."""

    def __init__(self, kept: Mapping[int, KeptRollout], response_ids: Tensor):
        """`kept`: by their row in the slice; `response_ids`: `[b, N]`, of the slice."""
        self.kept = kept
        self.ids = response_ids
        # Unless the objective had the plain student scored anyway.
        watched = bool(kept) and not any(PLAIN_STUDENT in rollout.alternatives for rollout in kept.values())
        self.on_logits = self._keep_student if watched else None
        """for `fused_plan_loss`, which has the student's logits: they need not be projected once more"""
        for rollout in kept.values() if watched else ():
            length = len(rollout.response)
            rollout.columns[f"logp/{PLAIN_STUDENT}"] = [None] * length
            rollout.alternatives[PLAIN_STUDENT] = ([[]] * length, [[]] * length)

    def _keep_student(self, places: tuple[Tensor, ...], logits: Tensor) -> None:
        kept = torch.isin(places[0], torch.tensor(list(self.kept), device=places[0].device)).nonzero().squeeze(-1)
        if not len(kept):
            return
        for wanted in kept.split(_TOGETHER):
            rows, positions = (place[wanted] for place in places)
            scores = score_logits(logits[wanted], self.ids[rows, positions], min(ALTERNATIVES, logits.shape[-1]))
            said = (rows, positions, scores.logp, scores.top_k_ids, scores.top_k_logp)
            for row, n, logp, ids, likeliest in zip(*(tensor.tolist() for tensor in said), strict=True):
                rollout = self.kept[row]
                rollout.columns[f"logp/{PLAIN_STUDENT}"][n] = logp
                of_place = rollout.alternatives[PLAIN_STUDENT]
                of_place[0][n], of_place[1][n] = ids, likeliest

    def learned(self, token_loss: Tensor) -> None:
        """Add the weighted loss of each token, from `[b, N]`."""
        for rollout, losses in zip(self.kept.values(), token_loss[list(self.kept)].tolist(), strict=True):
            rollout.columns["loss"] = losses[: len(rollout.response)]


def rollout_records(
    rollouts: Iterable[KeptRollout], renderer: ViewRenderer, images_folder: Path
) -> list[dict[str, Any]]:
    """Rows of rollouts.jsonl; the images that they name are written before they are returned.

    What an earlier row has of the same example (its image, a policy's view) is not said again.
    """
    records = []
    known: dict[str, dict[Source, View]] = {}
    for rollout in rollouts:
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
                **_token_columns(rollout, renderer.views.tokenizer),
                **(_what_was_seen(rollout, new, first, renderer, images_folder) if new else {}),
            }
        )
    return records


def _rows_of(values: Tensor, lengths: Sequence[int]) -> list[list[Any]]:
    return [row[:length] for row, length in zip(values.tolist(), lengths, strict=True)]


def _likeliest(scores: TokenScores, lengths: Sequence[int]) -> list[Likeliest]:
    few = (scores.top_k_ids[..., :ALTERNATIVES], scores.top_k_logp[..., :ALTERNATIVES])
    return list(zip(*(_rows_of(tensor, lengths) for tensor in few), strict=True))


def _token_columns(rollout: KeptRollout, tokenizer: Any) -> dict[str, Any]:
    texts: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in texts:
            texts[token] = tokenizer.decode([token])
        return texts[token]

    def likely(ids: list[int], logp: list[float]) -> list[list[Any]]:
        pairs = ((text(i), round(p, 3)) for i, p in zip(ids, torch.tensor(logp).exp().tolist(), strict=True))
        return [[name, p] for name, p in pairs if p >= LEAST_PROBABILITY]

    return {
        "tokens": [text(token) for token in rollout.response],
        **{name: [_rounded(value) for value in values] for name, values in rollout.columns.items()},
        "alternatives": {
            str(source): [likely(*place) for place in zip(*of_source, strict=True)]
            for source, of_source in rollout.alternatives.items()
        },
    }


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


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
        shown = VARIANTS[variant].render({**example, "images": images}).images if variant in VARIANTS else images
        if any(new is not old for new, old in zip(shown, images, strict=True)):
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
