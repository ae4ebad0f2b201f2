"""DOPD (arXiv 2606.30626): the teacher is a larger, frozen model that sees x and p; so does a copy of the student.

The copy has the student's current weights and no gradient. Where the two agree, or where the student's copy is the
surer one, there is nothing for the teacher's strong signal to add beyond what p reveals; where the teacher is surer,
there is.
`dopd_vl.core.dopd` has the regimes and what each is taught.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import (
    PRIVILEGED_STUDENT,
    PRIVILEGED_TEACHER,
    REGIMES,
    DopdSettings,
    Source,
    dopd_plan,
    route_tokens,
)
from dopd_vl.objectives.base import Decision, Scores


@dataclass(frozen=True)
class Dopd(DopdSettings):
    """Dual on-policy distillation, as published; its settings are `DopdSettings`."""

    name: ClassVar[str] = "dopd"

    def sources(self) -> tuple[Source, ...]:
        return (PRIVILEGED_TEACHER, PRIVILEGED_STUDENT)

    def decide(self, scores: Scores) -> Decision:
        teacher_logp = scores.policies[PRIVILEGED_TEACHER].logp
        student_logp = scores.policies[PRIVILEGED_STUDENT].logp
        regime, gap, thresholds = route_tokens(teacher_logp, student_logp, scores.response_mask, self)
        response_gap = gap[scores.response_mask]
        return Decision(
            plan=dopd_plan(regime, self),
            parts={r.name: regime == r for r in REGIMES},
            values={
                "gap/mean": response_gap.mean().item() if response_gap.numel() else 0.0,
                "gap/threshold": thresholds.gap.mean().item(),
                "gap/teacher_prob_threshold": thresholds.teacher_prob.mean().item(),
                "gap/student_prob_threshold": thresholds.student_prob.mean().item(),
            },
            per_token={"regime": regime, "gap": gap},
        )
