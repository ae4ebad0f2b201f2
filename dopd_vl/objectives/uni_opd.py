"""Uni-OPD (arXiv 2605.03677): the teacher's say, kept in order with the outcome.

The teacher is a larger, frozen model on x; a verifier says which rollouts are right. p and q are the log-probabilities
of the sampled token under student and teacher, A = q - p the advantage. A teacher may prefer a wrong rollout to a right
one of the same prompt; then both are shifted until they are `delta` apart:

    margin    = mean of A over the tokens of a prompt's right rollouts - mean over those of its wrong ones
    shortfall = max(delta - margin, 0)
    A + shortfall / 2 for every token of a right rollout,    A - shortfall / 2 for every token of a wrong one

Tokens with |q - p| >= `drop_gap` are left out, of the margin too. The rollouts of the larger outcome are scaled down
until right and wrong ones count the same in sum (1:1), by default over the whole batch of a rank. A prompt without a
right or without a wrong rollout is not shifted, a batch without either is not balanced: plain OPD. A rollout without
a verdict is neither right nor wrong. Where the paper is silent, these are our choices.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dopd_vl.core import Plan, PolicyGradient, Source
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import (
    PLAIN_STUDENT,
    PLAIN_TEACHER,
    CheckedSettings,
    NotNegative,
    Positive,
    log_ratio,
    mean_of,
)


@dataclass(frozen=True)
class UniOpd(CheckedSettings):
    """Policy gradient with margins between right and wrong rollouts."""

    name: ClassVar[str] = "uni-opd"
    paper: ClassVar[str] = "2605.03677"
    needs_siblings: ClassVar[int] = 2
    needs_verifier: ClassVar[bool] = True

    delta: NotNegative = 0.4
    """nats that right rollouts must lie above wrong ones of the same prompt"""
    drop_gap: Positive = 10.0
    """nats between student and teacher from which on a token is left out"""
    balance: Literal["batch", "group", "none"] = "batch"
    """among which rollouts right and wrong ones count the same: "batch", "group" (those of one prompt), "none" """

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_TEACHER, PLAIN_STUDENT)

    def decide(self, scores: Scores) -> Decision:
        if scores.correct is None:
            raise ValueError("uni-opd needs a verdict on every rollout, and the scores have none")
        mask = scores.response_mask
        advantage = log_ratio(scores, PLAIN_TEACHER, PLAIN_STUDENT)
        kept = mask & (advantage.abs() < self.drop_gap)
        takes_part = kept.any(dim=-1)
        right, wrong = (scores.correct == 1) & takes_part, (scores.correct == 0) & takes_part
        groups = [scores.group == number for number in scores.group[takes_part].unique()]

        shift, margins = torch.zeros_like(advantage), []
        for group in groups:
            of_right, of_wrong = (kept & (verdict & group)[:, None] for verdict in (right, wrong))
            if of_right.any() and of_wrong.any():
                margin = (advantage[of_right].mean() - advantage[of_wrong].mean()).item()
                margins.append(margin)
                shift += (of_right.to(shift) - of_wrong.to(shift)) * max(self.delta - margin, 0.0) / 2
        among = {"batch": [takes_part], "group": groups, "none": []}[self.balance]
        weight = (advantage + shift) * kept * balance(right, wrong, among)[:, None]

        total = max(1, len(groups))
        values = {
            "uni-opd/margin": sum(margins) / len(margins) if margins else math.nan,
            "uni-opd/corrected_groups": sum(margin < self.delta for margin in margins) / total,
            "uni-opd/one_sided_groups": (len(groups) - len(margins)) / total,
            "uni-opd/dropped_tokens": mean_of(~kept, mask),
        }
        return Decision(Plan((PolicyGradient(weight),)), {"dropped": mask & ~kept}, values, {"advantage": advantage})


def balance(right: Tensor, wrong: Tensor, among: list[Tensor]) -> Tensor:
    """`[B]` factors with which right and wrong rollouts count the same in each set of rollouts that has both."""
    factor = torch.ones(right.shape, device=right.device)
    for rollouts in among:
        counts = [int((kind & rollouts).sum()) for kind in (right, wrong)]
        for kind, count in zip((right, wrong), counts, strict=True):
            if min(counts) > 0:
                factor[kind & rollouts] = min(counts) / count
    return factor
