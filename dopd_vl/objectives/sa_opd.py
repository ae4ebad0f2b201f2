"""SA-OPD (arXiv 2608.03632): leave out what the prompt has no part in, and what the two disagree on too much.

The teacher is a larger, frozen model on x. Both are scored a second time without any prompt, on the prefix of the
response alone. With p and q the log-probabilities of the sampled token under student and teacher:

    A = q - p,    G = |A(x) - A(no prompt)|                how much of the disagreement the prompt accounts for
    dropped: the 20 % of the batch's tokens of lowest G, and the 30 % of largest |A|
    KL(S(.|x) || T(.|x)) over the whole vocabulary on the others, divided by the number of these

Known from a note of the paper's text, not from code. What is left of the prompt for a vision-language model is not
said: here an empty user message by the chat template, without the image (`without_view`: any other variant, e.g.
"degraded"). The batch is that of a rank; of equal values at a threshold all are kept. For visual understanding the
paper adapts the shares while it trains, by a rule that is not known, to keep the dropped share of sum |A| low; here
they are fixed, and that share is logged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Scores, Stuck
from dopd_vl.objectives.common import (
    PLAIN_STUDENT,
    PLAIN_TEACHER,
    CheckedSettings,
    ShareLeftOut,
    ViewName,
    log_ratio,
    mean_of,
    over_the_kept,
)


@dataclass(frozen=True)
class SaOpd(CheckedSettings):
    """Reverse KL on the tokens that the prompt speaks for."""

    name: ClassVar[str] = "sa-opd"
    paper: ClassVar[str] = "2608.03632"
    live_copy_remedy: ClassVar[str] = ""

    drop_ungrounded: ShareLeftOut = 0.2
    """share of the batch's tokens, of lowest G, that is left out"""
    drop_extreme: ShareLeftOut = 0.3
    """share of the batch's tokens, of largest |A|, that is left out"""
    without_view: ViewName = "no_prompt"
    """what both see when the prompt is taken away"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.without_view == "plain":
            raise ValueError("without_view='plain' is what both see anyway: no prompt is taken away")

    @property
    def stuck_parts(self) -> dict[str, Stuck]:
        none = "nothing is taught; lower objective.settings.drop_ungrounded and drop_extreme"
        return {"kept": Stuck(none, "teacher and student do not differ; look at model.teacher")}

    @property
    def _without(self) -> tuple[Source, Source]:
        return Source("teacher", self.without_view), Source("student", self.without_view)

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_TEACHER, PLAIN_STUDENT, *self._without)

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        gap = log_ratio(scores, PLAIN_TEACHER, PLAIN_STUDENT)
        grounding = (gap - log_ratio(scores, *self._without)).abs()
        kept = mask & ~lowest(grounding, mask, self.drop_ungrounded) & ~lowest(-gap.abs(), mask, self.drop_extreme)
        dropped, total = gap.abs()[mask & ~kept].sum(), gap.abs()[mask].sum()
        return Decision(
            plan=Plan((Term(PLAIN_TEACHER, "reverse_kl", "full", over_the_kept(kept, mask)),), "token"),
            parts={"kept": kept},
            values={
                "sa-opd/kept_share": mean_of(kept, mask),
                "sa-opd/grounding": mean_of(grounding, mask),
                "sa-opd/dropped_gap_share": (dropped / total).item() if total > 0 else 0.0,
            },
            per_token={"grounding": grounding},
        )


def lowest(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """The tokens `[B, N]` of lowest value, at most a share of all; those equal to the first one left are left, too."""
    among = values[mask].sort().values
    count = int(share * len(among) + 1e-9)
    return mask & (values < among[count]) if len(among) else torch.zeros_like(mask)
