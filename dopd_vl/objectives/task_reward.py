"""A task reward beside any objective: the verifier's verdict as one more policy gradient.

Recipes of NeMo-RL, slime, miles, ms-swift and verl add distillation to the advantage of the task; here the task is
added to the distillation, which is the same sum with the weight on the other side:

    advantage = weight * (c - mean c) / std c        c: 1 right, 0 wrong, among the rollouts of a prompt with a verdict

The standard deviation is the unbiased one. A prompt of right rollouts alone, or of wrong ones, has no advantage, and
neither has a rollout without a verdict. The terms of the objective stay as they are, and so does what its loss is a
mean of.
"""

from dataclasses import replace

from dopd_vl.core import PolicyGradient
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import mean_of, z_scored_by_group


def with_task_reward(decision: Decision, scores: Scores, weight: float) -> Decision:
    """The decision with the verdicts' advantage as one more term; as it is for a weight of 0."""
    if weight == 0.0:
        return decision
    if scores.correct is None:
        raise ValueError("a task reward needs a verdict on every rollout, and the scores have none")
    answered = scores.response_mask.any(-1)
    judged = answered & ~scores.correct.isnan()
    advantage = z_scored_by_group(scores.correct.nan_to_num(0.0), judged, scores.group)
    term = PolicyGradient(weight * advantage[:, None] * scores.response_mask)
    plan = replace(decision.plan, terms=(*decision.plan.terms, term))
    values = {**decision.values, "task_reward/rewarded_rollouts": mean_of(advantage != 0, answered)}
    return replace(decision, plan=plan, values=values)
