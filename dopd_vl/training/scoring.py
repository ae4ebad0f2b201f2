"""Scoring of a whole generation batch by one policy, before the first backward pass of its optimizer step."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dopd_vl.core import TokenScores
from dopd_vl.training.prompt_sharing import siblings_of
from dopd_vl.views import View

Forward = Callable[[list[View], list[list[int]], Tensor], tuple[Tensor, TokenScores]]
"""Views, responses and the tokens to score, bool `[b, n]`, of a micro-batch -> hidden states `[b, n, H]` that predict
the response tokens, n the longest, and their scores."""


class Scored(NamedTuple):
    """One policy on B rollouts of N response tokens at most."""

    hidden: Tensor
    """`[B, N, H]`, zero beyond a micro-batch's longest response"""
    scores: TokenScores


@torch.no_grad()
def score_views(
    forward: Forward, views: Sequence[View], responses: Sequence[list[int]], batch_size: int, token_mask: Tensor
) -> Scored:
    """Score all rollouts, `batch_size` at a time.

    Sequences of like length share a forward pass, so that little of it is padding, and siblings do, so that they can
    share their prompt.

    Args:
        token_mask: `[B, N]`, the tokens to score; false also for those of an example that takes no part.
    """
    _, prompt = siblings_of(views)
    longest = [0] * len(views)
    for b, response in enumerate(responses):
        longest[prompt[b]] = max(longest[prompt[b]], len(response))

    def by_length(b: int) -> tuple[int, int, int]:
        return len(views[b].prompt_ids) + longest[prompt[b]], prompt[b], len(responses[b])

    order = sorted(range(len(views)), key=by_length)
    hidden: Tensor | None = None
    scores: TokenScores | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(responses[b]) for b in rows)
        taking_part = token_mask[torch.tensor(rows, device=token_mask.device), :width]
        some_hidden, some = forward([views[b] for b in rows], [responses[b] for b in rows], taking_part)
        if hidden is None or scores is None:
            empty = _empty_like(some, *token_mask.shape)
            hidden = some_hidden.new_zeros(*token_mask.shape, some_hidden.shape[-1])
            scores = empty
        index = torch.tensor(rows, device=hidden.device)
        hidden[index, : some_hidden.shape[1]] = some_hidden
        for name, values in vars(some).items():
            whole: Tensor = getattr(scores, name)
            where = taking_part.to(whole.device)
            there = whole[index.to(whole.device), : values.shape[1]]
            there[where] = values[where]
            whole[index.to(whole.device), : values.shape[1]] = there
    if hidden is None or scores is None:
        raise ValueError("no sequence to score")
    return Scored(hidden, scores)


def _empty_like(scores: TokenScores, sequences: int, length: int) -> TokenScores:
    """Scores `[B, N, ...]` of nothing but masked tokens."""
    nothing = {"rest_logp": -torch.inf, "top_k_logp": -torch.inf, "tail_logp": -torch.inf}
    filled = {
        name: values.new_full((sequences, length, *values.shape[2:]), nothing.get(name, 0))
        for name, values in vars(scores).items()
    }
    return TokenScores(**filled)
