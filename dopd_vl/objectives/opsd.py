"""OPSD, on-policy self-distillation (arXiv 2601.18734): the student with the solution teaches the student without it.

The teacher is the student itself, fixed at its start (`teacher_policy: start`), and sees x together with a reference
solution: the privileged input, which here should be the variant with every step worked out
(`privilege.teacher_variant: hints_executed`). A teacher that follows the student, live (`student`) or as a slow average
(`average`), is the paper's comparison.

    JS(S(.|x), S_0(.|x, p)) over the whole vocabulary, even mixture (beta = 0.5)

Its successors (DAPD, arXiv 2608.01735; OP2SD, 2608.09228; TRL's pull request 5990) take the forward KL and clip each
vocabulary entry of it from above before they sum (`entry_clip`: 0.05; OP2SD down to 1e-7 for larger models), so that
single words of style cannot have the loss to themselves; the repository as published has no clip. An entry of the
forward KL is above zero where the teacher gives more than the student: where it is clipped the student no longer learns
to say that word, and what is left pushes down what the student says too much. The sum may fall below zero.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, Source, Term
from dopd_vl.core.divergences import DivergenceName
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import CheckedSettings, Positive, Share


@dataclass(frozen=True)
class Opsd(CheckedSettings):
    """Distillation of a reference solution from the student itself."""

    name: ClassVar[str] = "opsd"
    paper: ClassVar[str] = "2601.18734"
    live_copy_remedy: ClassVar[str] = "set objective.settings.teacher_policy: start"

    teacher_policy: Literal["start", "student", "average"] = "start"
    """"start": the student before its first step; "student": its current weights; "average": their slow average"""
    divergence: DivergenceName = "js"
    """"js"; "forward_kl" in what came after; "reverse_kl" """
    entry_clip: Positive = math.inf
    """nats that one vocabulary entry counts for at most; above it has no gradient. inf: no clip"""
    average_rate: Share = 0.001
    """share of the student's weights in the average, each step (a decay of 0.999); for "average" alone"""

    def sources(self) -> tuple[Source, ...]:
        return (Source(self.teacher_policy, "privileged"),)

    def decide(self, scores: Scores) -> Decision:
        (teacher,) = self.sources()
        weight = scores.response_mask.float()
        return Decision(Plan((Term(teacher, self.divergence, "full", weight, entry_clip=self.entry_clip),)))
