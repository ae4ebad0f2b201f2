"""What is held, and when."""

from dataclasses import dataclass

MOMENTS = (
    "prefill",
    "rollout",
    "scoring",
    "forward",
    "loss",
    "backward starts",
    "backward ends",
    "update",
    "evaluation",
)
"""Reading the prompts to roll out; the rollouts' last token; scoring; the end of the learning pass, its loss, the first
and the last layer of its backward pass; the optimizer; and, between steps, an evaluation."""
ALWAYS = frozenset(MOMENTS)
LEARNING = frozenset(MOMENTS[3:8])
PASSES = frozenset({*MOMENTS[:5], "evaluation"})


@dataclass(frozen=True)
class Line:
    """Something that is held."""

    name: str
    bytes: int
    moments: frozenset[str]
    reason: str
