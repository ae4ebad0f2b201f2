"""DOPD-anchored: DOPD's two supervisors, held so that neither can drift and none is trusted for what it does not know.

As in DOPD (arXiv 2606.30626) a privileged teacher T(.|x,p) and a privileged copy of the student, here C(.|x,p), look at
every sampled token, and the gap between them decides who teaches it. Three things differ, each for a failure that
docs/stability.md measures:

    the copy       is the student before its first step. A live copy is moved by the very updates that it teaches: its
                   errors come back as lessons, and nothing outside the student holds them.
    its tokens     are those of a large gap where it is surer than the teacher *and sure of itself*. DOPD compares the
                   two alone: a slip that both find unlikely (l_T = -12, l_C = -5) counts as the copy's knowledge.
    the teacher    teaches all others, by the forward KL. Its gradient, s - t, does not fade where the student gives
                   the right token next to nothing, as that of the reverse KL and of JS does.

    A_n  = |l_T - l_C|                          q_T, q_C: probabilities of the sampled token; means as DOPD's thresholds
    C's  : A_n >= mean(A),  q_C > q_T,  q_C >= mean(q_C)      copy_weight * KL(S(.|x) || C(.|x,p)), Top-K
    T's  : all others                                         KL(T(.|x,p) || S(.|x)), full vocabulary
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from dopd_vl.core import Plan, Source, Term, advantage_gap, compute_thresholds
from dopd_vl.core.divergences import DivergenceName
from dopd_vl.core.routing import ThresholdScope
from dopd_vl.objectives.base import Decision, Scores, Stuck
from dopd_vl.objectives.common import PRIVILEGED_TEACHER, AtLeastOne, CheckedSettings, NotNegative, Share, ShareLeftOut


@dataclass(frozen=True)
class DopdAnchored(CheckedSettings):
    """Dual on-policy distillation with a copy that stays where the student began."""

    name: ClassVar[str] = "dopd-anchored"
    paper: ClassVar[str] = "2606.30626"
    copy_part: ClassVar[str] = "copy"
    live_copy_remedy: ClassVar[str] = "set objective.settings.student_policy: start"

    copy_weight: NotNegative = 0.6
    """of the copy's tokens; the teacher's have weight 1"""
    divergence: DivergenceName = "forward_kl"
    """from the teacher, over the whole vocabulary"""
    copy_teaches: Literal["sure", "surer", "never"] = "sure"
    """the tokens of large gap that the copy teaches: where it is surer than the teacher and "sure" of itself; wherever
    it is "surer" than the teacher, as in DOPD; none"""
    student_policy: Literal["start", "average", "student"] = "start"
    """the copy's weights: "start", before the first step; "average", a slow average; "student", the current ones"""
    average_rate: Share = 0.005
    """share of the student's weights in the average, each step; for "average" alone"""
    top_k: AtLeastOne = 128
    """K of the copy's Top-K, vocabulary entries; the rest is one bucket"""
    trim_fraction: ShareLeftOut = 0.05
    """share of the tokens, of largest gap, that the means leave out"""
    threshold_scope: ThresholdScope = "global"
    """over which tokens the means go, see `DopdSettings`"""

    @property
    def stuck_parts(self) -> dict[str, Stuck]:
        if self.copy_teaches == "never":
            return {}
        none = "the copy teaches nothing; look at privilege.copy_variant"
        every = "the teacher teaches nothing; model.teacher or privilege.teacher_variant is too weak"
        return {"copy": Stuck(none, every)}

    def sources(self) -> tuple[Source, ...]:
        return (PRIVILEGED_TEACHER, Source(self.student_policy, "privileged"))

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        teacher, copy = self.sources()
        l_T, l_C = scores.policies[teacher].logp, scores.policies[copy].logp
        q_T, q_C = l_T.double().exp(), l_C.double().exp()
        gap = advantage_gap(l_T, l_C).masked_fill(~mask, 0.0)
        means = compute_thresholds(l_T, l_C, mask, self.trim_fraction, self.threshold_scope)

        copys = mask & (gap.double() >= means.gap) & (q_C > q_T)
        if self.copy_teaches == "sure":
            copys &= q_C >= means.student_prob
        elif self.copy_teaches == "never":
            copys = torch.zeros_like(mask)
        teachers = mask & ~copys
        terms = (
            Term(teacher, self.divergence, "full", teachers.double()),
            Term(copy, "reverse_kl", "top_k", copys * self.copy_weight, self.top_k),
        )
        return Decision(
            plan=Plan(terms),
            parts={"teacher": teachers, "copy": copys},
            values={
                "gap/threshold": means.gap.mean().item(),
                "gap/student_prob_threshold": means.student_prob.mean().item(),
            },
            per_token={"gap": gap, "copy": copys.long()},
        )
