"""OPCD, on-policy context distillation (arXiv 2602.12275): what a context is worth, put into the weights.

The teacher sees the context (here the privileged input) and the student does not. It is a frozen model, larger, or the
student's own start (`teacher_policy: start`), in which case nothing but the context is distilled.

    sum over the student's 256 likeliest tokens v of  S(v) (log S(v) - log T(v)),    S = S(.|x), T = T(.|x, p)

Nothing is renormalised, and the rest of the vocabulary counts for nothing, as published. Mind the trap: such a sum is
no divergence. It falls below zero where the student moves its mass out of its own 256 likeliest tokens, and a flat
student can thus lower it: a run can collapse. Watch the student's entropy and `kept_mass/student`; `opd` with
`tail: bucket` has the same support without the trap.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings


@dataclass(frozen=True)
class Opcd(CheckedSettings):
    """Distillation of a context by a truncated reverse KL."""

    name: ClassVar[str] = "opcd"
    paper: ClassVar[str] = "2602.12275"

    teacher_policy: Literal["teacher", "start"] = "teacher"
    """"teacher": the larger, frozen model; "start": the student before its first step"""
    top_k: AtLeastOne = 256
    """how many of the student's likeliest tokens are compared"""

    def sources(self) -> tuple[Source, ...]:
        return (Source(self.teacher_policy, "privileged"),)

    def decide(self, scores: Scores) -> Decision:
        (teacher,) = self.sources()
        weight = scores.response_mask.float()
        return Decision(Plan((Term(teacher, "reverse_kl", "top_k", weight, self.top_k, "student", "drop"),)))
