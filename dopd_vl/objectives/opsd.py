"""OPSD, on-policy self-distillation (arXiv 2601.18734): the student with the solution teaches the student without it.

The teacher is the student itself, fixed at its start (`teacher_policy: start`), and sees x together with a reference
solution: the privileged input, which here should be the variant with every step worked out
(`privilege.teacher_variant: hints_executed`). A teacher that follows the student, live (`student`) or as a slow average
(`average`), is the paper's comparison.

    JS(S(.|x), S_0(.|x, p)) over the whole vocabulary, even mixture (beta = 0.5)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import CheckedSettings, Share


@dataclass(frozen=True)
class Opsd(CheckedSettings):
    """Distillation of a reference solution from the student itself."""

    name: ClassVar[str] = "opsd"
    paper: ClassVar[str] = "2601.18734"
    live_copy_remedy: ClassVar[str] = "set objective.settings.teacher_policy: start"

    teacher_policy: Literal["start", "student", "average"] = "start"
    """"start": the student before its first step; "student": its current weights; "average": their slow average"""
    average_rate: Share = 0.001
    """share of the student's weights in the average, each step (a decay of 0.999); for "average" alone"""

    def sources(self) -> tuple[Source, ...]:
        return (Source(self.teacher_policy, "privileged"),)

    def decide(self, scores: Scores) -> Decision:
        (teacher,) = self.sources()
        return Decision(Plan((Term(teacher, "js", "full", scores.response_mask.float()),)))
