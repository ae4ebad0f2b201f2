"""Cal-OPD (arXiv 2609.21619): privileged views say how far a teacher may be off, not what to learn.

The teacher is a larger, frozen model. Its target is what it says on x. It is probed twice more, with positive and with
negative feedback (c+, c-) after the prompt; how far these move it bounds how sure it is. With p and q the
log-probabilities of the sampled token under the student and the teacher on x:

    d+ = q(x, c+) - q,  d- = q(x, c-) - q,    up = max(0, d+, d-),  down = max(0, -d+, -d-)
    L = q - lam down,   U = q + lam up
    advantage = max(L - p, 0) - max(p - U, 0)              nothing where p lies between

A rollout without any advantage is left out of the mean. lam = 5.

Known from a digest, without code. The wording of the feedback is not known: careful against hasty work, the answer
called right or wrong; ours stands in `privileged.rendering.variants`. `positive_view` and `negative_view` take any
other pair, e.g. "hints" and "wrong_hint"; the paper finds that solutions filter too much.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, PolicyGradient, Source
from dopd_vl.objectives.base import Decision, Scores, Stuck
from dopd_vl.objectives.common import (
    PLAIN_STUDENT,
    PLAIN_TEACHER,
    CheckedSettings,
    NotNegative,
    ViewName,
    log_ratio,
    mean_of,
    over_the_kept,
)


@dataclass(frozen=True)
class CalOpd(CheckedSettings):
    """Policy gradient where the student leaves the range of a probed teacher."""

    name: ClassVar[str] = "cal-opd"
    paper: ClassVar[str] = "2609.21619"

    lam: NotNegative = 5.0
    """how many times the probes' reach counts; 0 is plain OPD"""
    positive_view: ViewName = "positive_feedback"
    """what the first probe sees"""
    negative_view: ViewName = "negative_feedback"
    """what the second probe sees"""

    @property
    def stuck_parts(self) -> dict[str, Stuck]:
        none = "the student is nowhere without the probes' range; lower objective.settings.lam"
        return {"outside": Stuck(none, "the probes do not move the teacher; look at positive_view and negative_view")}

    def sources(self) -> tuple[Source, ...]:
        probes = (Source("teacher", view) for view in (self.positive_view, self.negative_view))
        return (PLAIN_TEACHER, PLAIN_STUDENT, *probes)

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        _, _, positive, negative = self.sources()
        gap = log_ratio(scores, PLAIN_TEACHER, PLAIN_STUDENT)
        d_positive, d_negative = (log_ratio(scores, probe, PLAIN_TEACHER) for probe in (positive, negative))
        up = d_positive.maximum(d_negative).clamp(min=0.0)
        down = (-d_positive).maximum(-d_negative).clamp(min=0.0)
        advantage = (gap - self.lam * down).clamp(min=0.0) - (-gap - self.lam * up).clamp(min=0.0)
        outside = mask & (advantage != 0)
        counts, answered = outside.any(-1), mask.any(-1)
        return Decision(
            plan=Plan((PolicyGradient(advantage * over_the_kept(counts, answered)[:, None]),)),
            parts={"outside": outside},
            values={
                "cal-opd/outside_share": mean_of(outside, mask),
                "cal-opd/reach": mean_of(up + down, mask),
                "cal-opd/skipped_rollouts": mean_of(~counts, answered),
            },
            per_token={"advantage": advantage},
        )
