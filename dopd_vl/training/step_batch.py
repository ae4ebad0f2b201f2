"""The rollouts of one optimizer step on one rank, and what they are taught: what scoring hands over to learning.

TRL shuffles a step's batch and cuts it into slices, each key along its first dimension. `StepBatch.pack` makes the
dictionary that it does this to, `StepBatch.unpack` takes a slice of it back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dopd_vl.core import Plan, Source, TokenScores
from dopd_vl.objectives import Decision
from dopd_vl.views import View


@dataclass(frozen=True)
class KeptHidden:
    """A policy's hidden states at those tokens where a plan needs them beyond the scores."""

    rows: Tensor
    """`[B, N]` bool, the tokens"""
    values: Sequence[Tensor]
    """of each rollout, `[tokens, H]`"""

    @classmethod
    def of(cls, hidden: Tensor, rows: Tensor, places: Tensor | None = None) -> "KeptHidden":
        """The chosen tokens `[B, N]` of hidden states `[B, N, H]`.

        Args:
            places: the rollouts that the hidden states are of, where they are not of all; no other may be chosen.
        """
        if places is not None:
            of_places = rows[places.to(rows.device)]
            if int(of_places.sum()) != int(rows.sum()):
                raise ValueError("hidden states are missing of tokens that were chosen")
            return cls(rows, hidden[of_places].split(rows.sum(-1).tolist()))
        return cls(rows, hidden[rows].split(rows.sum(-1).tolist()))

    def whole(self, device: torch.device) -> Tensor:
        """`[B, N, H]`, zero at the other tokens."""
        rows, values = self.rows.to(device), torch.cat(list(self.values)).to(device)
        return values.new_zeros(*rows.shape, values.shape[-1]).masked_scatter(rows.unsqueeze(-1), values)


@dataclass(frozen=True)
class StepBatch:
    """B rollouts of N response tokens at most."""

    response_ids: Tensor
    """`[B, N]` int64"""
    response_mask: Tensor
    """`[B, N]` bool; all false for an example that takes no part"""
    places: Tensor
    """`[B]` int64, each rollout's place in the step, whatever slice it has come into"""
    views: Sequence[View]
    """what the student that learns sees"""
    scale: Tensor
    """`[B, N]`, each token's factor in the loss, before it is divided by the number of items of the step"""
    plan: Plan
    parts: Mapping[str, Tensor]
    """kinds of token, bool `[B, N]` each"""
    scores: Mapping[Source, TokenScores]
    """of the plan's policies, but for one of several teachers, which needs hidden states alone"""
    hidden: Mapping[Source, KeptHidden]
    """of those whose scores do not do"""

    @property
    def responses(self) -> list[list[int]]:
        """The response ids as lists; of an example that takes no part its first one, for a forward pass needs one."""
        lengths = self.response_mask.sum(-1).clamp(min=1).tolist()
        return [row[:length] for row, length in zip(self.response_ids.tolist(), lengths, strict=True)]

    def pack(self, items: Tensor) -> dict[str, Any]:
        """For TRL. `items`: how many sequences or tokens the loss of the whole step, over all ranks, is a mean of."""
        packed: dict[str, Any] = {
            "completion_ids": self.response_ids,
            "completion_mask": self.response_mask,
            "places": self.places,
            "views": self.views,
            "scale": self.scale,
            "weights": torch.stack([term.weight for term in self.plan.terms], dim=1),
            "parts": torch.stack(list(self.parts.values()), dim=1) if self.parts else None,
            "num_items_in_batch": items,
        }
        for number, source in enumerate(self.plan.sources()):
            if source in self.scores:
                packed |= {f"scores/{number}/{name}": tensor for name, tensor in vars(self.scores[source]).items()}
            if source in self.hidden:
                packed |= {f"rows/{number}": self.hidden[source].rows, f"hidden/{number}": self.hidden[source].values}
        return packed

    @classmethod
    def unpack(cls, packed: Mapping[str, Any], decision: Decision) -> "StepBatch":
        """A slice of what `pack` made of the step that `decision` is of, as long as its own longest response."""
        mask: Tensor = packed["completion_mask"]
        longest = int(mask.sum(-1).clamp(min=1).max())
        terms = zip(decision.plan.terms, packed["weights"].unbind(1), strict=True)
        plan = Plan(tuple(replace(term, weight=weight[:, :longest]) for term, weight in terms), decision.plan.reduction)
        parts = [] if packed["parts"] is None else packed["parts"][:, :, :longest].unbind(1)
        scores: dict[Source, TokenScores] = {}
        hidden: dict[Source, KeptHidden] = {}
        for number, source in enumerate(plan.sources()):
            if f"scores/{number}/logp" in packed:
                kept = TokenScores(**{f.name: packed[f"scores/{number}/{f.name}"] for f in fields(TokenScores)})
                scores[source] = kept.map(lambda tensor: tensor[:, :longest])
            if f"hidden/{number}" in packed:
                hidden[source] = KeptHidden(packed[f"rows/{number}"][:, :longest], packed[f"hidden/{number}"])
        return cls(
            response_ids=packed["completion_ids"][:, :longest],
            response_mask=mask[:, :longest],
            places=packed["places"],
            views=packed["views"],
            scale=packed["scale"][:, :longest],
            plan=plan,
            parts=dict(zip(decision.parts, parts, strict=True)),
            scores=scores,
            hidden=hidden,
        )
