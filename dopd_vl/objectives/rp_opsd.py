"""RP-OPSD (arXiv 2607.24447): the student at half resolution learns what the student at full resolution sees.

The student rolls out and learns on the image at half of each side; the deployed one sees the whole image. The teacher
is a slow average of the student's own weights (each step 5 % of the new ones), and sees the image as it is, after the
same prompt. No label and no box is needed.

    sum over the teacher's 100 likeliest v of  A(v) log(A(v) / S(v)) - A(v) + S(v)          mean over tokens

Both probabilities are those of the whole softmax; the rest of the vocabulary counts for nothing. The two last summands
are what a forward KL of a part lacks: each entry is then nowhere negative, and has no gradient where the two are equal.
`student_variant: none` is the control without any privilege.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings, Share, VariantName

TEACHER = Source("average", "plain")


@dataclass(frozen=True)
class RpOpsd(CheckedSettings):
    """Distillation from the whole image to a small one, by the student's own average."""

    name: ClassVar[str] = "rp-opsd"
    paper: ClassVar[str] = "2607.24447"
    needs_images: ClassVar[bool] = True

    student_variant: VariantName = "half_resolution"
    """what the student sees when it rolls out and learns"""
    top_k: AtLeastOne = 100
    """how many of the teacher's likeliest tokens are compared"""
    average_rate: Share = 0.05
    """share of the student's weights in the average, each step"""

    def sources(self) -> tuple[Source, ...]:
        return (TEACHER,)

    def decide(self, scores: Scores) -> Decision:
        weight = scores.response_mask.float()
        term = Term(TEACHER, "forward_kl", "top_k", weight, self.top_k, "target", "corrected")
        return Decision(Plan((term,), "token"))
