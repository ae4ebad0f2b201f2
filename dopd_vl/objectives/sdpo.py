"""SDPO, self-distillation from a rollout that worked (arXiv 2601.20802).

The teacher is a slow average of the student's own weights (each step 5 % of the new ones), and sees x together with a
right rollout of the same prompt: what the student could already do, now in view. A rollout without a right sibling is
masked: it teaches nothing, though its tokens count in the mean.

    JS(S(.|x), A(.|x, sibling)) on the student's 100 likeliest tokens and one bucket for the rest, mean over tokens

The paper clips the importance ratio between the policy that learns and the one that sampled at 2. Here every batch of
rollouts is learnt from once, by the weights that sampled it: the ratio is 1, and is not computed.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings, Share, mean_of

TEACHER = Source("average", "sibling")


@dataclass(frozen=True)
class Sdpo(CheckedSettings):
    """Distillation of a right sibling from the student's own average."""

    name: ClassVar[str] = "sdpo"
    paper: ClassVar[str] = "2601.20802"
    needs_siblings: ClassVar[int] = 2
    needs_verifier: ClassVar[bool] = True

    top_k: AtLeastOne = 100
    """how many of the student's likeliest tokens are compared one by one"""
    average_rate: Share = 0.05
    """share of the student's weights in the average, each step"""

    def sources(self) -> tuple[Source, ...]:
        return (TEACHER,)

    def decide(self, scores: Scores) -> Decision:
        if scores.has_sibling is None:
            raise ValueError("sdpo needs to know which rollouts have a right sibling, and the scores do not say")
        mask = scores.response_mask
        taught = mask & scores.has_sibling.bool()[:, None]
        answered = mask.any(dim=-1)
        return Decision(
            plan=Plan((Term(TEACHER, "js", "top_k", taught.float(), self.top_k, "student", "bucket"),), "token"),
            parts={"masked": mask & ~taught},
            values={"sdpo/masked_rollouts": mean_of(~scores.has_sibling.bool(), answered)},
        )
