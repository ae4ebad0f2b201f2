"""VA-OPD, visual advantage (arXiv 2605.21924): teach what can only be said by looking.

The teacher is a larger, frozen model on x, scored a second time on a degraded image (a tenth of each side and back).
q are its log-probabilities of the sampled token:

    a = max(q(image) - q(degraded), 0)                  the visual advantage of a token
    rollouts: M softmax over a prompt's M rollouts of z-scored mean a, so that their mean weight is 1
    tokens:   half of a response's weight on its top 20 % by a, half on the rest
    loss:     KL(S(.|x) || T(.|x)) over the whole vocabulary

The top 20 % are rounded up; of equal a the earlier token counts as larger. Rollouts of a prompt whose mean a are all
equal weigh 1 each. A response of one token, or whose a are all equal, has no top, and its tokens weigh 1 each.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import PLAIN_TEACHER, CheckedSettings, Share, count_of, log_ratio, mean_of

DEGRADED_TEACHER = Source("teacher", "degraded")


@dataclass(frozen=True)
class VaOpd(CheckedSettings):
    """Reverse KL, weighted by what the image is worth to the teacher."""

    name: ClassVar[str] = "va-opd"
    paper: ClassVar[str] = "2605.21924"
    needs_images: ClassVar[bool] = True
    needs_siblings: ClassVar[int] = 2

    top_share: Share = 0.2
    """share of a response's tokens, of largest visual advantage, that has half of its weight"""

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_TEACHER, DEGRADED_TEACHER)

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        advantage = log_ratio(scores, PLAIN_TEACHER, DEGRADED_TEACHER).clamp(min=0.0)
        # Rollout by rollout there is little to compute, and a GPU would be waited for at each.
        there = advantage.cpu(), mask.cpu()
        weight, top = self._token_weights(*there)
        weight = weight * rollout_weights(*there, scores.group.cpu())[:, None]
        weight, top = weight.to(mask.device), top.to(mask.device)
        return Decision(
            plan=Plan((Term(PLAIN_TEACHER, "reverse_kl", "full", weight),)),
            parts={"visual": top},
            values={"va-opd/visual_advantage": mean_of(advantage, mask)},
            per_token={"visual_advantage": advantage},
        )

    def _token_weights(self, advantage: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `[B, N]` of mean 1 over each response, and which tokens are its top."""
        weight, top = mask.to(advantage), torch.zeros_like(mask)
        for b, mask_N in enumerate(mask):
            tokens = mask_N.nonzero().flatten()
            size, a = len(tokens), advantage[b, tokens]
            if size == 0 or a.min() == a.max():  # nothing to tell apart; one token is such a case
                continue
            count = count_of(self.top_share, size)
            order = tokens[a.argsort(descending=True, stable=True)]
            top[b, order[:count]] = True
            if count < size:
                weight[b, order[:count]] = size / (2 * count)
                weight[b, order[count:]] = size / (2 * (size - count))
        return weight, top


def rollout_weights(advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """`[B]`: M softmax of the z-scored mean advantage among the M rollouts of a prompt that have a token."""
    mean = (advantage * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    weight = torch.zeros_like(mean)
    answered = mask.any(dim=-1)
    for number in group[answered].unique():
        rollouts = (group == number) & answered
        values = mean[rollouts]
        spread = values.std(correction=0)
        # Equal means differ by rounding at most, which a z-score would blow up.
        is_spread = spread > 1e-6 * values.abs().max()
        z = (values - values.mean()) / spread if is_spread else torch.zeros_like(values)
        weight[rollouts] = len(values) * z.softmax(0)
    return weight
