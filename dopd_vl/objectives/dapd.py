"""DAPD (arXiv 2608.01735): rollout and reference solution teach one another, each with and without the other in view.

The student's rollout y and a reference solution r are two trajectories of one prompt x. The teacher is the student
itself: its start (S_0), or a snapshot of it, renewed every 100 steps (A). Six forward KLs over the whole vocabulary, at
temperature 1.1, each of their vocabulary entries clipped at 0.05:

    tokens of y   A(.|x, r)   -> S(.|x)        2/15        OPSD's
    tokens of r   S_0(.|x)    -> S(.|x, r)     2/15
    tokens of y   S_0(.|x, r) -> S(.|x, y)     2/15
    tokens of r   A(.|x, y)   -> S(.|x)        2/5
    tokens of y   S_0(.|x)    -> S(.|x, y)     2/5
    tokens of r   S_0(.|x, y) -> S(.|x, r)     4/5

Each is the mean over its trajectory's tokens, of a rank's step here, of a micro-batch in the code. So the student
learns on four sequences a rollout: y after x, y after x and y, r after x, r after x and r. They are four rows of the
batch: `training.num_generations` is a multiple of four, a quarter of it the rollouts of a prompt. Every policy scores
all four, 20 passes where the six targets would take six.

The reference solution is the steps with their results (`privileged.hints_executed`) and the final answer, cut at the
longest response; what stands for the prompt with a rollout in it is the view "own". The code has templates of its own
there, thinks where the reference is in view, and trains adapters at a rate of 5e-6.
"""

from dataclasses import dataclass
from typing import ClassVar

from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives.base import Decision, Lesson, Scores
from dopd_vl.objectives.common import AtLeastOne, CheckedSettings, Positive, over_the_kept

SOLVED, OWN = "hints_executed", "own"
LESSONS = (
    Lesson("rollout", "plain"),
    Lesson("rollout", OWN),
    Lesson("reference", "plain"),
    Lesson("reference", SOLVED),
)
START, START_SOLVED, START_OWN = (Source("start", view) for view in ("plain", SOLVED, OWN))
SNAPSHOT_SOLVED, SNAPSHOT_OWN = (Source("average", view) for view in (SOLVED, OWN))
TERMS = (
    (SNAPSHOT_SOLVED, Lesson("rollout", "plain"), 2 / 15),
    (START, Lesson("reference", SOLVED), 2 / 15),
    (START_SOLVED, Lesson("rollout", OWN), 2 / 15),
    (SNAPSHOT_OWN, Lesson("reference", "plain"), 2 / 5),
    (START, Lesson("rollout", OWN), 2 / 5),
    (START_OWN, Lesson("reference", SOLVED), 4 / 5),
)


@dataclass(frozen=True)
class Dapd(CheckedSettings):
    """Forward KLs between two trajectories and the views of them."""

    name: ClassVar[str] = "dapd"
    paper: ClassVar[str] = "2608.01735"
    lessons: ClassVar[tuple[Lesson, ...]] = LESSONS
    average_rate: ClassVar[float] = 1.0

    temperature: Positive = 1.1
    """of both distributions"""
    entry_clip: Positive = 0.05
    """nats that one vocabulary entry counts for at most"""
    average_every: AtLeastOne = 100
    """optimizer steps after which the snapshot is the student of that time"""

    def sources(self) -> tuple[Source, ...]:
        return (START, START_SOLVED, START_OWN, SNAPSHOT_SOLVED, SNAPSHOT_OWN)

    def decide(self, scores: Scores) -> Decision:
        if scores.lesson is None:
            raise ValueError("dapd needs to know which lesson each sequence is, and the scores do not say")
        mask = scores.response_mask
        of_lesson = {lesson: mask & (scores.lesson == number)[:, None] for number, lesson in enumerate(LESSONS)}
        terms = tuple(
            Term(
                source,
                "forward_kl",
                "full",
                share * over_the_kept(of_lesson[lesson], mask),
                entry_clip=self.entry_clip,
                temperature=self.temperature,
            )
            for source, lesson, share in TERMS
        )
        parts = {"rollout": of_lesson[LESSONS[0]] | of_lesson[LESSONS[1]]}
        return Decision(Plan(terms, "token"), {**parts, "reference": mask & ~parts["rollout"]})
