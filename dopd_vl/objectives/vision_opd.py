"""Vision-OPD (arXiv 2605.18740): the student, shown where to look, teaches the student that must find it.

The teacher is a slow average of the student's own weights (each step 5 % of the new ones), and sees the question with
the image cut down to the evidence (the variant `evidence_crop`). The student sees the whole image. The loss is SDPO's:

    JS(S(.|x), A(.|evidence crop)) on the student's 100 likeliest tokens and one bucket for the rest, mean over tokens
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings, Share

TEACHER = Source("average", "evidence_crop")


@dataclass(frozen=True)
class VisionOpd(CheckedSettings):
    """Distillation of a look at the evidence from the student's own average."""

    name: ClassVar[str] = "vision-opd"
    paper: ClassVar[str] = "2605.18740"
    needs_images: ClassVar[bool] = True

    top_k: AtLeastOne = 100
    """how many of the student's likeliest tokens are compared one by one"""
    average_rate: Share = 0.05
    """share of the student's weights in the average, each step"""

    def sources(self) -> tuple[Source, ...]:
        return (TEACHER,)

    def decide(self, scores: Scores) -> Decision:
        weight = scores.response_mask.float()
        return Decision(Plan((Term(TEACHER, "js", "top_k", weight, self.top_k, "student", "bucket"),), "token"))
