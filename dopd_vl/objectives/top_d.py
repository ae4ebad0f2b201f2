"""TOP-D (arXiv 2607.04751): rewards that a disagreement cannot drag down without end, and what comes after counts too.

The teacher is a larger, frozen model on x. With p and q the log-probabilities of the sampled token under student and
teacher, the reward of a token is its gain under a mixture of the two, which never falls below log(1 - alpha):

    r_n = log(alpha exp(q - p) + 1 - alpha)
    R_n = r_n + mean of r over the later tokens of the response            nothing for its last token
    advantage = (R_n - mean R) / std R                                     over all tokens of the prompt's rollouts

The standard deviation is unbiased and at least 1e-6; a prompt with a single token has no spread and teaches nothing.
The code, an open request for prime-rl, has alpha = 0.2; the paper 0.1 to 0.2. It weighs by the importance ratio between
the policy that learns and the one that sampled, clipped as in PPO; here each batch is learnt from once, by the weights
that sampled it, and the ratio is 1.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from dopd_vl.core import Plan, PolicyGradient, Source
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import (
    PLAIN_STUDENT,
    PLAIN_TEACHER,
    CheckedSettings,
    OpenShare,
    log_ratio,
    mean_of,
    z_scored_by_group,
)


@dataclass(frozen=True)
class TopD(CheckedSettings):
    """Policy gradient on bounded rewards and their later mean."""

    name: ClassVar[str] = "top-d"
    paper: ClassVar[str] = "2607.04751"

    alpha: OpenShare = 0.2
    """share of the teacher in the mixture; no reward is below log(1 - alpha) nats"""

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_TEACHER, PLAIN_STUDENT)

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        gap = log_ratio(scores, PLAIN_TEACHER, PLAIN_STUDENT)
        floor = torch.full_like(gap, math.log1p(-self.alpha))
        reward = torch.logaddexp(gap + math.log(self.alpha), floor).masked_fill(~mask, 0.0)
        later, count = (values.sum(-1, keepdim=True) - values.cumsum(-1) for values in (reward, mask.to(reward)))
        returned = reward + later / count.clamp(min=1.0)
        advantage = z_scored_by_group(returned, mask, scores.group)
        return Decision(
            plan=Plan((PolicyGradient(advantage),)),
            parts={"raised": mask & (advantage > 0)},
            values={"top-d/reward": mean_of(reward, mask), "top-d/gap": mean_of(gap, mask)},
            per_token={"advantage": advantage, "reward": reward},
        )
