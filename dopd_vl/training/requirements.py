"""Whether an objective can be trained with these rollouts, this student and these data."""

from typing import Any

from rich.console import Console

from dopd_vl.evaluation.verifiers import VERIFIERS, unscored_tasks
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import POLICIES, Requirements
from dopd_vl.training.rollouts import SIBLING_VIEW
from privileged import VARIANTS
from privileged.errors import nearest

VIEWS = ("plain", "privileged", SIBLING_VIEW, *VARIANTS)


def check_requirements(objective: Objective, num_generations: int, reads_images: bool, dataset: Any) -> None:
    """Raises: ValueError: the objective needs what is not there; the message says what."""
    name, needs = objective.name, Requirements.of(objective)
    for source in objective.sources():
        if source.policy not in POLICIES:
            raise ValueError(f"objective {name!r} asks for policy {source.policy!r}, known: {', '.join(POLICIES)}")
        if source.view not in VIEWS:
            raise ValueError(f"objective {name!r} asks for view {source.view!r}, {nearest(source.view, VIEWS)}")
    if num_generations < needs.needs_siblings:
        raise ValueError(
            f"objective {name!r} compares rollouts of one prompt: num_generations={num_generations} must be at least "
            f"{needs.needs_siblings}"
        )
    if needs.needs_images and not reads_images:
        raise ValueError(f"objective {name!r} is about images, but the student reads text only")
    if needs.needs_verifier and dataset is not None:
        unknown = sorted({str(task) for task in dataset.unique("task")} - set(VERIFIERS))
        if unknown:
            raise ValueError(
                f"objective {name!r} needs a verdict on every rollout; no verifier for task {unknown[0]!r}"
            )
        for task, reason in unscored_tasks().items():
            if task in dataset.unique("task"):
                raise ValueError(f"objective {name!r} needs a verdict on every rollout; task {task!r}: {reason}")


def say_what_is_not_scored(dataset: Any, console: Console) -> None:
    """One line for each task in the data whose responses get no verdict."""
    present = set(dataset.unique("task"))
    for task, reason in unscored_tasks().items():
        if task in present:
            console.print(f"responses to tasks {task!r} are not scored: {reason}", highlight=False, soft_wrap=True)


def needs_teacher(objective: Objective) -> bool:
    """Whether a larger teacher takes part at all."""
    return any(source.policy == "teacher" for source in objective.sources())
