"""S2VOPD (arXiv 2608.14144): the student on a spoilt image learns what the student on the clean one sees.

The student rolls out and learns on T(x), the image made smaller and sometimes noisy; the deployed one sees x. The
teacher is a slow average of the student's own weights (each step 5 % of the new ones), and sees x.

    JS(S(.|T(x)), A(.|x)) on the teacher's 100 likeliest tokens, both renormalised to them, mean over responses

T is that of the project's page: 0.3 to 0.6 of each side, not enlarged again, and with probability 1/2 noise of standard
deviation 0.11; the model card has another mixture. Here it is a function of the example (variant `augmented`), so that
the rollouts of a prompt share it. k = 100 and the clipped importance ratio are known from the model card; the ratio is
1 here, since each batch is learnt from once, by the weights that sampled it. `student_variant: none` is the paper's
control without augmentation, `average_rate: 1` the one without an average.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, Source, Term
from dopd_vl.core.divergences import DivergenceName
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings, Share, VariantName

TEACHER = Source("average", "plain")


@dataclass(frozen=True)
class S2vOpd(CheckedSettings):
    """Distillation from the clean image to a spoilt one, by the student's own average."""

    name: ClassVar[str] = "s2vopd"
    paper: ClassVar[str] = "2608.14144"
    needs_images: ClassVar[bool] = True

    student_variant: VariantName = "augmented"
    """what the student sees when it rolls out and learns"""
    divergence: DivergenceName = "js"
    """"js"; "forward_kl" and "reverse_kl" are the paper's comparisons"""
    top_k: AtLeastOne = 100
    """how many of the teacher's likeliest tokens are compared"""
    average_rate: Share = 0.05
    """share of the student's weights in the average, each step"""

    def sources(self) -> tuple[Source, ...]:
        return (TEACHER,)

    def decide(self, scores: Scores) -> Decision:
        weight = scores.response_mask.float()
        return Decision(Plan((Term(TEACHER, self.divergence, "top_k", weight, self.top_k, "target", "renormalize"),)))
