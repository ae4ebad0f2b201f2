"""An objective that decides on rollouts made up for it: which terms its plan has is known before any model is."""

import torch
from torch import Tensor

from dopd_vl.core import Plan, Source, TokenScores
from dopd_vl.objectives.base import Objective, Requirements, Scores

_TOKENS, _VOCABULARY = 64, 1_000


def trial_plan(objective: Objective, group: int, top_k: int) -> tuple[Plan, Scores]:
    """The plan of an objective for made-up rollouts, and their scores.

    Args:
        group: rollouts of a prompt.
        top_k: entries that the scores hold a token.
    """
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
