"""TIP, token importance (arXiv 2604.14084): half of the tokens teach as much as all of them.

The teacher is a larger, frozen model on x. A token matters where the student is unsure, or where it is sure and the
teacher disagrees; one score holds both, within each response:

    h = min-max normalised entropy of the student, cut off at its 98th percentile
    d = min-max normalised KL(S||T)
    score = h + d - h d

The half of each response's tokens with the highest score is taught, KL(S||T) over the whole vocabulary; of equal scores
the earlier token. Minimum, maximum and percentile are those of the response; a quantity that is the same at all of its
tokens says nothing, and is 0. A response keeps at least one token. The loss of a response is still divided by the
number of all its tokens, so that keeping half of them halves it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Pair, Scores
from dopd_vl.objectives.common import (
    PLAIN_STUDENT,
    PLAIN_TEACHER,
    CheckedSettings,
    Percentile,
    Share,
    count_of,
    mean_of,
)

DISAGREEMENT = Pair("reverse_kl", PLAIN_STUDENT, PLAIN_TEACHER)


@dataclass(frozen=True)
class Tip(CheckedSettings):
    """Reverse KL on the tokens that matter."""

    name: ClassVar[str] = "tip"
    paper: ClassVar[str] = "2604.14084"
    pairs: ClassVar[tuple[Pair, ...]] = (DISAGREEMENT,)

    keep: Share = 0.5
    """share of each response's tokens that is taught, rounded up"""
    entropy_percentile: Percentile = 98.0
    """percentile of a response's entropies above which they count as equal"""

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_STUDENT, PLAIN_TEACHER)

    def decide(self, scores: Scores) -> Decision:
        device = scores.response_mask.device
        # Rollout by rollout there is little to compute, and a GPU would be waited for at each.
        mask = scores.response_mask.cpu()
        entropy, disagreement = scores.policies[PLAIN_STUDENT].entropy.cpu(), scores.pairs[DISAGREEMENT].cpu()
        importance, kept = torch.zeros_like(entropy), torch.zeros_like(mask)
        for b, mask_N in enumerate(mask):
            tokens = mask_N.nonzero().flatten()
            if not len(tokens):
                continue
            h = entropy[b, tokens]
            h = min_max(h.clamp(max=torch.quantile(h, self.entropy_percentile / 100).item()))
            d = min_max(disagreement[b, tokens])
            importance[b, tokens] = h + d - h * d
            order = importance[b, tokens].argsort(descending=True, stable=True)
            kept[b, tokens[order[: count_of(self.keep, len(tokens))]]] = True
        importance, kept = importance.to(device), kept.to(device)
        return Decision(
            plan=Plan((Term(PLAIN_TEACHER, "reverse_kl", "full", kept.float()),)),
            parts={"kept": kept},
            values={"tip/kept_share": mean_of(kept, scores.response_mask)},
            per_token={"importance": importance},
        )


def min_max(values: Tensor) -> Tensor:
    """Values moved and scaled to [0, 1], all 0 where they are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
