"""DOPD-anchored: DOPD's question, answered so that the answer cannot drift.

As in DOPD (arXiv 2606.30626) a privileged teacher T(.|x,p) and a privileged copy of the student look at every sampled
token, and the gap between them says whether the teacher's lead is skill. Three things differ, each for a failure that
docs/stability.md measures:

    the copy         C(.|x,p): the student as it was before the first step. A live copy is pulled along by what it
                     teaches, and what it then teaches is its own decay.
    who teaches      C, where it is surer of the token than T *and sure in itself*; T everywhere else. A sampled token
                     that neither believes in (l_T = -12, l_C = -5) is a mistake, not the copy's knowledge.
    how strongly     T's weight grows with the gap without a jump: from beta_light where T and C agree to 1 where the
                     gap is many times its mean.

    A_n   = |l_T - l_C|                                        q_T, q_C: probabilities of the sampled token
    own_n = q_C > q_T  and  q_C >= mean(q_C)
    loss  = own_n:      beta_light * KL(S(.|x) || C(.|x,p)), Top-K
            otherwise:  (beta_light + (1 - beta_light) * A_n / (A_n + mean(A))) * JS(S(.|x), T(.|x,p)), full vocabulary

Means are DOPD's thresholds: trimmed, over the optimizer-step batch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import PRIVILEGED_TEACHER, DopdSettings, Plan, Source, Term, advantage_gap, compute_thresholds
from dopd_vl.core.divergences import DivergenceName
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import check_choice, check_share


@dataclass(frozen=True)
class DopdAnchored(DopdSettings):
    """Dual on-policy distillation with a copy that stays where the student began."""

    name: ClassVar[str] = "dopd-anchored"

    student_policy: Literal["start", "average", "student"] = "start"
    """the copy's weights: "start", before the first step; "average", a slow average; "student", the current ones"""
    average_rate: float = 0.005
    """share of the student's weights in the average, each step; for "average" alone"""
    confident: bool = True
    """false: the copy teaches wherever it is surer than the teacher, as in DOPD"""
    smooth: bool = True
    """false: the teacher's weight is 1 everywhere"""
    divergence: DivergenceName = "js"
    """from the teacher, over the whole vocabulary"""
    anchor: bool = True
    """false: the copy teaches nothing; where it would, the teacher does"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("student_policy", self.student_policy, ("start", "average", "student"))
        check_share("average_rate", self.average_rate)

    def sources(self) -> tuple[Source, ...]:
        return (PRIVILEGED_TEACHER, Source(self.student_policy, "privileged"))

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        teacher, copy = self.sources()
        l_T, l_C = scores.policies[teacher].logp, scores.policies[copy].logp
        means = compute_thresholds(l_T, l_C, mask, self.trim_fraction, self.threshold_scope)
        gap = advantage_gap(l_T, l_C).masked_fill(~mask, 0.0).double()
        q_T, q_C = l_T.exp(), l_C.exp()

        own = mask & (q_C > q_T) & (gap >= means.gap)
        if self.confident:
            own &= q_C >= means.student_prob
        if not self.anchor:
            own &= False
        strength = mask.double()
        if self.smooth:
            lead = gap / (gap + means.gap).clamp(min=1e-12)
            strength = strength * (self.beta_light + (1.0 - self.beta_light) * lead)
        terms = (
            Term(teacher, self.divergence, "full", strength * ~own),
            Term(copy, "reverse_kl", "top_k", own * self.beta_light, self.top_k, self.top_k_source, self.tail),
        )
        return Decision(
            plan=Plan(terms),
            parts={"teacher": mask & ~own, "copy": own},
            values={"gap/threshold": means.gap.mean().item()},
            per_token={"gap": gap.float()},
        )
