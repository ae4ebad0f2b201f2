"""What every objective is: from scores of the sampled rollouts to a plan. No objective has a trainer of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from dopd_vl.core import Plan, Source, TokenScores
from dopd_vl.core.divergences import DivergenceName

POLICIES = ("teacher", "student", "start", "average")
"""The larger, frozen teacher; the student's current weights; its weights before the first step; their slow average."""


class Pair(NamedTuple):
    """A divergence over the whole vocabulary between two policies, measured while scoring."""

    divergence: DivergenceName
    student: Source
    target: Source


class Lesson(NamedTuple):
    """A sequence that the student learns on: a trajectory, and what it sees before it."""

    trajectory: Literal["rollout", "reference"]
    """the student's own, or a reference solution of the example"""
    view: str
    """"plain", "own" or a variant"""


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
    correct: Tensor | None = None
    """`[B]`, 1 right, 0 wrong, NaN where the task has no verifier, by the verifier of each example's task"""
    pairs: Mapping[Pair, Tensor] = field(default_factory=dict)
    """`[B, N]` for every pair that was asked for"""
    has_sibling: Tensor | None = None
    """`[B]` bool: another rollout of the same prompt is right, and stands in the view "sibling" """
    lesson: Tensor | None = None
    """`[B]` int64: which of several `Requirements.lessons` each sequence is"""


@dataclass(frozen=True)
class Decision:
    """A plan and what a person wants to know about it."""

    plan: Plan
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> bool `[B, N]`: kinds of token that the objective tells apart; their share of tokens and loss is logged"""
    values: Mapping[str, float] = field(default_factory=dict)
    """name -> number to log, e.g. thresholds; of several ranks the mean is logged, NaN left out"""
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> `[B, N]`, kept with the sampled rollouts for inspection; of a float the mean is logged as `name/mean`"""


class Objective(Protocol):
    """A frozen dataclass whose fields are the method's settings.

    `Source.policy` is one of `POLICIES`. `Source.view` is "plain" (what the deployed student sees; of the student
    itself what it rolls out and learns on, see `Requirements.student_variant`), "privileged" (the configured variant of
    the privileged input), "sibling" (the prompt with a right rollout of the same prompt in it), "own" (the prompt with
    the rollout itself in it), or the name of a variant in `privileged.VARIANTS`. One that is published has its
    arXiv number as `paper`, which the card of a student cites.
    """

    name: ClassVar[str]

    def sources(self) -> tuple[Source, ...]:
        """The policies, and the view of each, that must be scored before `decide`."""
        ...

    def decide(self, scores: Scores) -> Decision:
        """The plan for this batch: a pure function of the scores."""
        ...


class Requirements(NamedTuple):
    """What an objective needs beyond its sources; the attributes of the same names, where it has them."""

    pairs: tuple[Pair, ...] = ()
    """divergences to measure"""
    average_rate: float = 0.0
    """share of the student's weights in their slow average, each time that it moves"""
    average_every: int = 1
    """optimizer steps between two moves of the average"""
    lessons: tuple[Lesson, ...] = (Lesson("rollout", "plain"),)
    """sequences of one rollout that the student learns on, each a row of the batch; the first is the rollout itself"""
    needs_siblings: int = 1
    """rollouts per prompt, at least"""
    needs_verifier: bool = False
    """whether every example's task needs a verifier"""
    needs_images: bool = False
    """whether it makes sense with a vision-language student alone"""
    student_variant: str = "none"
    """what the student sees when it rolls out and learns, where the deployed one sees less or more ("none")"""
    needs_scores: bool = True
    """whether `decide` reads its policies' scores; else only the kept rollouts have them"""

    @classmethod
    def of(cls, objective: Objective) -> "Requirements":
        """Attributes of the objective, the defaults above for those that it lacks."""
        return cls._make(getattr(objective, name, default) for name, default in cls._field_defaults.items())

    def shown_to_student(self, configured: str) -> str:
        """The variant that the student rolls out and learns on: the objective's own, else the configured one."""
        return configured if self.student_variant == "none" else self.student_variant


class Stuck(NamedTuple):
    """What it means that a part of the tokens has come to a stop."""

    at_none: str
    """no token is of the part"""
    at_every: str
    """every token is"""


class Advice(NamedTuple):
    """What to say where a run of the objective goes wrong; the attributes of the same names, where it has them."""

    copy_part: str | None = None
    """the part of the tokens that a copy of the student teaches, because it is surer than the teacher"""
    live_copy_remedy: str = "let its copy have the weights of the start (policy 'start' in the objective's sources)"
    """what to set where the student's current weights teach, shown more than the student sees; "" where they do not"""
    stuck_parts: Mapping[str, Stuck] = MappingProxyType({})
    """of the parts that should hold some tokens, and not all"""

    @classmethod
    def of(cls, objective: Objective) -> "Advice":
        """Attributes of the objective, the defaults above for those that it lacks."""
        return cls._make(getattr(objective, name, default) for name, default in cls._field_defaults.items())


def needs_teacher(objective: Objective) -> bool:
    """Whether a larger teacher takes part at all."""
    return any(source.policy == "teacher" for source in objective.sources())
