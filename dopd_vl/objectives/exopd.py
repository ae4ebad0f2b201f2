"""ExOPD, reward extrapolation (arXiv 2602.12125): go past the teacher, along the way from a reference to it.

The teacher is a larger, frozen model on x. With p, q and r the log-probabilities of the sampled token under the
student, the teacher and a reference, distillation is reinforcement learning with the reward q - r and a KL to the
reference; here the reward counts lam times:

    advantage = -(p - r - lam (q - r)) = (q - p) + (lam - 1) (q - r)

lam = 1 is plain on-policy distillation, lam > 1 goes beyond the teacher. The reference is the student's start.
`reference: none` puts r = 0 (all tokens alike): the teacher sharpened, not extrapolated, which is a control of ours.
The paper's other choice, the model that the teacher was made from, would need a third model and is not here.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, PolicyGradient, Source
from dopd_vl.core.divergences import LOG_PROB_FLOOR
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import PLAIN_STUDENT, PLAIN_TEACHER, CheckedSettings, NotNegative, log_ratio, mean_of

REFERENCE = Source("start", "plain")


@dataclass(frozen=True)
class ExOpd(CheckedSettings):
    """Policy gradient along an extrapolated log-ratio."""

    name: ClassVar[str] = "exopd"
    paper: ClassVar[str] = "2602.12125"

    lam: NotNegative = 1.25
    """how many times the reward q - r counts; 1 is OPD"""
    reference: Literal["start", "none"] = "start"
    """"start": the student before its first step; "none": r = 0"""

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_TEACHER, PLAIN_STUDENT, *((REFERENCE,) if self.reference == "start" else ()))

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        if self.reference == "start":
            reference_gap = log_ratio(scores, PLAIN_TEACHER, REFERENCE)
        else:
            reference_gap = scores.policies[PLAIN_TEACHER].logp.clamp(min=LOG_PROB_FLOOR)
        gap = log_ratio(scores, PLAIN_TEACHER, PLAIN_STUDENT)
        advantage = gap + (self.lam - 1.0) * reference_gap
        return Decision(
            plan=Plan((PolicyGradient(advantage),)),
            values={"exopd/reference_gap": mean_of(reference_gap, mask), "exopd/gap": mean_of(gap, mask)},
            per_token={"advantage": advantage},
        )
