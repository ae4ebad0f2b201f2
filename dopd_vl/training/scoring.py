"""Scoring of a whole generation batch by one policy, before the first backward pass of its optimizer step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dopd_vl.views import View

Forward = Callable[[list[View], list[list[int]]], Tensor]
"""Views and responses of a micro-batch -> hidden states `[b, n, H]` that predict the response tokens, n the longest."""


@torch.no_grad()
def hidden_states(forward: Forward, views: Sequence[View], responses: Sequence[list[int]], batch_size: int) -> Tensor:
    """Hidden states `[B, N, H]` that predict the response tokens; zero beyond a micro-batch's longest response.

    Sequences of like length share a forward pass, so that little of it is padding.
    """
    length = max(len(ids) for ids in responses)
    order = sorted(range(len(views)), key=lambda b: len(views[b].prompt_ids) + len(responses[b]))
    result: Tensor | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        hidden = forward([views[b] for b in rows], [responses[b] for b in rows])
        if result is None:
            result = hidden.new_zeros(len(views), length, hidden.shape[-1])
        result[torch.tensor(rows, device=result.device), : hidden.shape[1]] = hidden
    if result is None:
        raise ValueError("no sequence to score")
    return result
