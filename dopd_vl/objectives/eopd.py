"""EOPD, entropy-aware on-policy distillation (arXiv 2603.07079): keep the teacher's doubt where it has any.

The teacher is a larger, frozen model on x. The reverse KL alone seeks one mode; where the teacher is unsure, several
ways on are good, and a forward KL keeps them:

    at every token            sampled reverse KL, as a policy gradient with advantage q - p
    where H(T) > tau          + alpha * sum over the teacher's 16 likeliest v of  T'(v) (log T'(v) - log S(v))

q and p are the log-probabilities of the sampled token under teacher and student, H(T) the entropy of the teacher in
nats, T' the teacher renormalised over those 16 tokens; the student is not renormalised.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, PolicyGradient, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import (
    PLAIN_STUDENT,
    PLAIN_TEACHER,
    AtLeastOne,
    CheckedSettings,
    NotNegative,
    log_ratio,
    mean_of,
)


@dataclass(frozen=True)
class Eopd(CheckedSettings):
    """Sampled reverse KL, and a forward KL where the teacher is unsure."""

    name: ClassVar[str] = "eopd"
    paper: ClassVar[str] = "2603.07079"

    tau: NotNegative = 0.8
    """nats of the teacher's entropy above which the forward KL is added"""
    top_k: AtLeastOne = 16
    """how many of the teacher's likeliest tokens the forward KL looks at"""
    alpha: NotNegative = 1.0
    """weight of the forward KL"""

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_TEACHER, PLAIN_STUDENT)

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        advantage = log_ratio(scores, PLAIN_TEACHER, PLAIN_STUDENT)
        gated = mask & (scores.policies[PLAIN_TEACHER].entropy > self.tau)
        weight = gated.to(advantage) * self.alpha
        forward = Term(PLAIN_TEACHER, "forward_kl", "top_k", weight, self.top_k, "target", "renormalize_target")
        return Decision(
            plan=Plan((PolicyGradient(advantage), forward)),
            parts={"gated": gated},
            values={"eopd/gated_share": mean_of(gated, mask), "eopd/mean_gap": mean_of(advantage, mask)},
        )
