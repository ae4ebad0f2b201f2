"""Vanilla on-policy distillation (arXiv 2306.13649; Thinking Machines 2025).

The teacher is a larger, frozen model. It sees what the student sees (`teacher_view: plain`), and every response token
is taught alike, in one of two forms:

    divergence         D(S(.|x, y_<n) || T(.|x, y_<n))                 reverse KL by default, any divergence and support
    policy_gradient    advantage q - p of the sampled token            its expected gradient is the reverse KL's

q and p are the log-probabilities of the sampled token under the teacher and the student. With `teacher_view:
privileged` the teacher sees the privileged input too: uniform privileged distillation, the baseline that DOPD's routing
must beat. With `teacher_view: wrong_hint` it is misled: a control (arXiv 2606.11709).

`evidence_gate` weighs each token by how much of what the teacher says there is owed to the evidence (counterfactual
evidence, VAD, arXiv 2607.28590). The teacher is scored twice on the same rollout, with the evidence and without it.
Where the evidence raises the sampled token, the teacher speaks from it; elsewhere from habit:

    g_n = clamp(q_with - q_without, 0, limit)        w_n = g_n / mean(g) over the batch's response tokens
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dopd_vl.core import Plan, PolicyGradient, Source, Term
from dopd_vl.core.divergences import LOG_PROB_FLOOR, DivergenceName, SupportName, TopKSource
from dopd_vl.core.plan import TermTail
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import PLAIN_STUDENT, CheckedSettings, Positive, ViewName, log_ratio, mean_of


@dataclass(frozen=True)
class Opd(CheckedSettings):
    """Uniform distillation of every response token from one teacher."""

    name: ClassVar[str] = "opd"
    paper: ClassVar[str] = "2306.13649"

    form: Literal["divergence", "policy_gradient"] = "divergence"
    """"divergence", or "policy_gradient": the sampled token's q - p as advantage; the settings from `divergence` to
    `entry_clip` then say nothing"""
    teacher_view: ViewName = "plain"
    """what the teacher sees: "plain", "privileged", or a variant, e.g. "wrong_hint" """
    divergence: DivergenceName = "reverse_kl"
    """"reverse_kl", "forward_kl" or "js" """
    support: SupportName = "full"
    """"full", "top_k" or "sampled": the vocabulary entries looked at one by one"""
    top_k: int = 128
    """K, with support "top_k" """
    top_k_source: TopKSource = "target"
    """whose K tokens: "target" (the teacher's), "student" or "union" """
    tail: TermTail = "bucket"
    """what becomes of the rest: "bucket", "renormalize", "drop", "corrected" (dropped, and the sum of the others kept a
    divergence) or "renormalize_target" """
    entry_clip: Positive = math.inf
    """nats that one vocabulary entry counts for at most, see `opsd` """
    evidence_gate: ViewName = "none"
    """"none": no gate; else the view in which the teacher lacks the evidence, e.g. "degraded" (images), or "plain" with
    `teacher_view: privileged`"""
    evidence_limit: Positive = 5.0
    """nats that the evidence of one token counts for at most"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evidence_gate == self.teacher_view:
            raise ValueError(f"evidence_gate={self.evidence_gate!r} is teacher_view itself: no evidence is taken away")
        self._term(torch.zeros(0))  # names a divergence, support, top_k, top_k_source or tail that cannot be

    @property
    def needs_images(self) -> bool:
        return "degraded" in (self.evidence_gate, self.teacher_view)

    @property
    def needs_scores(self) -> bool:
        """A plan over the whole vocabulary projects the teacher itself; to weigh tokens by it is another matter."""
        return self.form != "divergence" or self.support != "full" or self.evidence_gate != "none"

    @property
    def _teacher(self) -> Source:
        return Source("teacher", self.teacher_view)

    def _without_evidence(self) -> tuple[Source, ...]:
        return () if self.evidence_gate == "none" else (Source("teacher", self.evidence_gate),)

    def _term(self, weight: Tensor) -> Term:
        support = (self.support, weight, self.top_k, self.top_k_source, self.tail)
        return Term(self._teacher, self.divergence, *support, self.entry_clip)

    def sources(self) -> tuple[Source, ...]:
        student = (PLAIN_STUDENT,) if self.form == "policy_gradient" else ()
        return (self._teacher, *student, *self._without_evidence())

    def decide(self, scores: Scores) -> Decision:
        weight, values = scores.response_mask.float(), {}
        for without in self._without_evidence():
            logps = scores.policies[self._teacher].logp, scores.policies[without].logp
            weight = evidence_weight(*logps, scores.response_mask, self.evidence_limit)
            values["opd/evidence_gain"] = mean_of(log_ratio(scores, self._teacher, without), scores.response_mask)
            values["opd/evidence_share"] = mean_of(weight > 0, scores.response_mask)
        if self.form == "divergence":
            return Decision(Plan((self._term(weight),)), values=values)
        advantage = log_ratio(scores, self._teacher, PLAIN_STUDENT)
        values["opd/mean_gap"] = mean_of(advantage, scores.response_mask)
        return Decision(Plan((PolicyGradient(weight * advantage),)), values=values, per_token={"advantage": advantage})


def evidence_weight(with_logp: Tensor, without_logp: Tensor, response_mask: Tensor, limit: float) -> Tensor:
    """w of each token, `[B, N]`, mean 1 over the response tokens, zero where masked.

    Evidence that raises no token of the batch weighs nothing: all zero. The limit keeps one token, impossible without
    the evidence, from taking the whole weight of the batch. Where the paper is silent, both are our choice.
    """
    gain = (with_logp.clamp(min=LOG_PROB_FLOOR) - without_logp.clamp(min=LOG_PROB_FLOOR)).clamp(0.0, limit)
    gain = gain.masked_fill(~response_mask, 0.0)
    total = gain.sum()
    return gain * (response_mask.sum() / total) if total > 0 else gain
