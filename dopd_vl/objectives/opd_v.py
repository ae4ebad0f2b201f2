"""OPD-V (arXiv 2608.05131): learn from the crop where the crop's detail is what made the difference.

The teacher is a slow average of the student's own weights (each step 5 % of the new ones). It sees the question with
the image cut down to the evidence (+), and with a third of that crop under a black rectangle (-). The student sees the
whole image. With q+ and q- the teacher's log-probabilities of the sampled token:

    w = max(q+ - q-, 0)
    w * JS(S(.|x), A(.|+)) on the student's 100 likeliest tokens and one bucket for the rest, mean over all tokens

The weights are neither scaled nor limited, as in the code; about half of the tokens have one above zero. The code draws
the rectangle anew at each visit from one generator; here it is a function of the example. Its importance ratio, clipped
at 2, is 1 here, since each batch of rollouts is learnt from once, by the weights that sampled it.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings, Share, log_ratio, mean_of

CROP = Source("average", "evidence_crop")
MASKED_CROP = Source("average", "masked_crop")


@dataclass(frozen=True)
class OpdV(CheckedSettings):
    """Distillation of a look at the evidence, weighted by what a mask over it takes away."""

    name: ClassVar[str] = "opd-v"
    paper: ClassVar[str] = "2608.05131"
    needs_images: ClassVar[bool] = True

    top_k: AtLeastOne = 100
    """how many of the student's likeliest tokens are compared one by one"""
    average_rate: Share = 0.05
    """share of the student's weights in the average, each step"""

    def sources(self) -> tuple[Source, ...]:
        return (CROP, MASKED_CROP)

    def decide(self, scores: Scores) -> Decision:
        weight = log_ratio(scores, CROP, MASKED_CROP).clamp(min=0.0)
        evident = scores.response_mask & (weight > 0)
        return Decision(
            plan=Plan((Term(CROP, "js", "top_k", weight, self.top_k, "student", "bucket"),), "token"),
            parts={"evident": evident},
            values={
                "opd-v/weight": mean_of(weight, scores.response_mask),
                "opd-v/evident_share": mean_of(evident, scores.response_mask),
            },
            per_token={"evidence": weight},
        )
