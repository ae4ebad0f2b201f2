"""What every objective is: from scores of the sampled rollouts to a plan. No objective has a trainer of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from dopd_vl.core import Plan, Source, TokenScores


@dataclass(frozen=True)
class Scores:
    """The scored generation batch of one rank: the whole optimizer step, before its first backward pass.

    B rollouts, N response tokens at most; values at masked positions are zero. No gradient.
    """

    policies: Mapping[Source, TokenScores]
    """what `score_tokens` kept of every source that was asked for"""
    response_ids: Tensor
    """`[B, N]` int64"""
    response_mask: Tensor
    """`[B, N]` bool"""
    group: Tensor
    """`[B]` int64: rollouts of the same prompt share a number"""


@dataclass(frozen=True)
class Decision:
    """A plan and what a person wants to know about it."""

    plan: Plan
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> bool `[B, N]`: kinds of token that the objective tells apart; their share of tokens and loss is logged"""
    values: Mapping[str, float] = field(default_factory=dict)
    """name -> number to log, e.g. thresholds"""
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> `[B, N]`, kept with the sampled rollouts for inspection"""


class Objective(Protocol):
    """A frozen dataclass whose fields are the method's settings."""

    name: ClassVar[str]

    def sources(self) -> tuple[Source, ...]:
        """The policies, and the view of each, that must be scored before `decide`."""
        ...

    def decide(self, scores: Scores) -> Decision:
        """The plan for this batch: a pure function of the scores."""
        ...
