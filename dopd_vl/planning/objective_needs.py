"""What an objective has scored and kept: found by letting it decide on rollouts made up for that purpose."""

import torch
from torch import Tensor

from dopd_vl.core import Source, TokenScores, rows_to_keep
from dopd_vl.core.plan import Plan, Term
from dopd_vl.objectives import Objective, Scores
from dopd_vl.objectives.base import Requirements
from dopd_vl.planning.workload import Scoring
from dopd_vl.views.rollouts import OWN_VIEW

_TOKENS, _VOCABULARY = 64, 1_000


def needs_of(objective: Objective, group: int, top_k: int) -> tuple[tuple[Scoring, ...], bool]:
    """The policies that it scores, and whether any of its terms is over the whole vocabulary.

    Args:
        group: rollouts of a prompt.
        top_k: entries that `score_tokens` keeps a token.
    """
    plan, scores = _decide(objective, group, top_k)
    supervising, kept = plan.sources(), rows_to_keep(plan, scores.policies)
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


def longest_lesson(objective: Objective, prompt: int, privileged: int, response: int) -> int:
    """Tokens of the longest prompt that the student learns on, by those of the plain view, of the longest privileged
    one and of a response."""
    tokens = {"plain": prompt, OWN_VIEW: prompt + response}
    return max(tokens.get(lesson.view, privileged) for lesson in Requirements.of(objective).lessons)


def _decide(objective: Objective, group: int, top_k: int) -> tuple[Plan, Scores]:
    generator = torch.Generator().manual_seed(0)
    rollouts = max(2, group)
    shape = (4 * rollouts, _TOKENS)

    def nats(*size: int) -> Tensor:
        return -torch.rand(*shape, *size, generator=generator) * 4 - 0.01

    def scored() -> TokenScores:
        logp = nats()
        return TokenScores(
            logp=logp,
            rest_logp=torch.log1p(-logp.exp()),
            entropy=-nats(),
            log_z=-nats(),
            top_k_ids=torch.randint(_VOCABULARY, (*shape, top_k), generator=generator, dtype=torch.int32),
            top_k_logp=nats(top_k) - 5,
            tail_logp=nats(),
        )

    policies: dict[Source, TokenScores] = {source: scored() for source in objective.sources()}
    scores = Scores(
        policies=policies,
        response_ids=torch.randint(_VOCABULARY, shape, generator=generator),
        response_mask=torch.ones(shape, dtype=torch.bool),
        group=torch.arange(shape[0]) // rollouts,
        correct=(torch.arange(shape[0]) % 2).float(),
        pairs={pair: -nats() for pair in Requirements.of(objective).pairs},
        has_sibling=torch.ones(shape[0], dtype=torch.bool),
        lesson=torch.arange(shape[0]) % len(Requirements.of(objective).lessons),
    )
    return objective.decide(scores).plan, scores
