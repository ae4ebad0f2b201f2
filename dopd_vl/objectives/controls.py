"""Controls: what a gain must be held against, since each of these can look like distillation without any teaching.

`Negative` (arXiv 2608.31046): no teacher at all. Every sampled token that the student itself found unlikely gets the
same negative advantage; the student merely grows surer.

    advantage = -penalty where S(y_n|x, y_<n) < below, else 0

"Unlikely" is a probability below a fixed number, not a share of the batch: a student that is sure everywhere is left
alone. That, and the two numbers, are our choice.

`SelfPlain` (arXiv 2609.20612): a self-teacher without any reference. The teacher is the student's own slow average, or
its start, and sees x alone, as the student does: JS(S(.|x), A(.|x)) over the whole vocabulary. It knows nothing that
the student does not; student and teacher begin equal, where this loss and its gradient are zero. What this control
gains is rounding, dropout and weight decay.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, PolicyGradient, Source, Term
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import PLAIN_STUDENT, CheckedSettings, NotNegative, Share, mean_of


@dataclass(frozen=True)
class Negative(CheckedSettings):
    """A fixed negative advantage on tokens of low probability."""

    name: ClassVar[str] = "negative"
    paper: ClassVar[str] = "2608.31046"

    penalty: NotNegative = 1.0
    """minus the advantage of an unlikely token"""
    below: Share = 0.2
    """student's probability under which a token is unlikely"""

    def sources(self) -> tuple[Source, ...]:
        return (PLAIN_STUDENT,)

    def decide(self, scores: Scores) -> Decision:
        logp = scores.policies[PLAIN_STUDENT].logp
        unlikely = scores.response_mask & (logp.exp() < self.below)
        return Decision(
            plan=Plan((PolicyGradient(-self.penalty * unlikely.to(logp)),)),
            parts={"unlikely": unlikely},
            values={"negative/unlikely_share": mean_of(unlikely, scores.response_mask)},
        )


@dataclass(frozen=True)
class SelfPlain(CheckedSettings):
    """A self-teacher that sees what the student sees."""

    name: ClassVar[str] = "self-plain"
    paper: ClassVar[str] = "2609.20612"

    teacher_policy: Literal["average", "start"] = "average"
    """"average": the student's slow average; "start": the student before its first step"""
    average_rate: Share = 0.05
    """share of the student's weights in the average, each step; for "average" alone"""

    def sources(self) -> tuple[Source, ...]:
        return (Source(self.teacher_policy, "plain"),)

    def decide(self, scores: Scores) -> Decision:
        (teacher,) = self.sources()
        return Decision(Plan((Term(teacher, "js", "full", scores.response_mask.float()),)))
