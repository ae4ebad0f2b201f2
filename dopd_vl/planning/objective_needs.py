"""What an objective has scored and kept: found by letting it decide on rollouts made up for that purpose."""

from dopd_vl.core import Plan, Term, rows_to_keep
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import Requirements
from dopd_vl.objectives.trial import trial_plan
from dopd_vl.planning.workload import Scoring
from dopd_vl.training.teachers import is_teacher, needs_more_than_scores
from dopd_vl.views.rollouts import OWN_VIEW


def needs_of(
    objective: Objective, group: int, top_k: int, all_served: bool = False
) -> tuple[tuple[Scoring, ...], bool]:
    """The policies that it scores, and whether any of its terms is over the whole vocabulary.

    Args:
        group: rollouts of a prompt.
        top_k: entries that `score_tokens` keeps a token.
        all_served: whether every teacher is: terms of its whole distribution are then made of its entries.
    """
    plan, scores = trial_plan(objective, group, top_k)
    supervising = plan.sources()
    if all_served:
        terms = (t for t in plan.terms if not (isinstance(t, Term) and _is_cut(t)))
        plan = Plan(tuple(terms), plan.reduction)
    kept = rows_to_keep(plan, scores.policies)
    scorings = tuple(
        Scoring(
            policy=source.policy,
            view=source.view,
            supervises=source in supervising,
            keeps_hidden=source in kept,
            of_all_tokens=source in kept and bool(kept[source].all()),
        )
        for source in objective.sources()
    )
    return scorings, any(isinstance(term, Term) and term.support == "full" for term in plan.terms)


def _is_cut(term: Term) -> bool:
    return is_teacher(term.source.policy) and needs_more_than_scores(term)


def longest_lesson(objective: Objective, prompt: int, privileged: int, response: int) -> int:
    """Tokens of the longest prompt that the student learns on, by those of the plain view, of the longest privileged
    one and of a response."""
    tokens = {"plain": prompt, OWN_VIEW: prompt + response}
    return max(tokens.get(lesson.view, privileged) for lesson in Requirements.of(objective).lessons)
