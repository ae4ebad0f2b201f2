"""SDFT, self-distillation from demonstrations (arXiv 2601.19897): the student teaches itself what it can do when shown.

The teacher is a slow average of the student's own weights (each step 1 % of the new ones), and sees x together with a
demonstration (here the privileged input). Being nearly the student, it says in the student's own words what the
demonstration shows, so that little else is forgotten.

    KL(S(.|x) || A(.|x, p)) over the whole vocabulary      `divergence: reverse_kl`, as in the paper
    KL(A(.|x, p) || S(.|x))                                `divergence: forward_kl`, as in the code published with it
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import CheckedSettings, Share

TEACHER = Source("average", "privileged")


@dataclass(frozen=True)
class Sdft(CheckedSettings):
    """Distillation of the demonstrated behaviour from the student's own average."""

    name: ClassVar[str] = "sdft"
    paper: ClassVar[str] = "2601.19897"

    divergence: Literal["reverse_kl", "forward_kl"] = "reverse_kl"
    """"reverse_kl" (the paper) or "forward_kl" (its code)"""
    average_rate: Share = 0.01
    """share of the student's weights in the average, each step"""

    def sources(self) -> tuple[Source, ...]:
        return (TEACHER,)

    def decide(self, scores: Scores) -> Decision:
        return Decision(Plan((Term(TEACHER, self.divergence, "full", scores.response_mask.float()),)))
