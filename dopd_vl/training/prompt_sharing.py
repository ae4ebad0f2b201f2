"""A prompt is read once for all of its rollouts: their responses go on from the same keys and values.

The hidden states stay what they were; of n rollouts, n - 1 readings of the prompt, its image tokens and its privileged
text are saved.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dopd_vl.views import View


def prompts_of(views: Sequence[View]) -> tuple[list[View], list[int]]:
    """The different views, and which of them each rollout has: the same view, not merely an equal one."""
    numbers: dict[int, int] = {}
    different: list[View] = []
    rows = []
    for view in views:
        if id(view) not in numbers:
            numbers[id(view)] = len(different)
            different.append(view)
        rows.append(numbers[id(view)])
    return different, rows


def can_go_on(config: PreTrainedConfig) -> bool:
    """Whether several responses can go on from a model's cache: it holds keys and values, and no recurrent state."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


def hidden_states_from_shared_prompts(
    backbone: Any, prompts: Mapping[str, Tensor], rows: Tensor, response_ids: Tensor, response_mask: Tensor
) -> Tensor:
    """Hidden states `[B, N, H]` that predict the response tokens; differentiable.

    Args:
        prompts: model inputs of P left-padded prompts, as `ViewProcessor.collate` makes them with empty responses.
        rows: `[B]` int64, each rollout's prompt.
        response_ids: `[B, N]` int64, right-padded; N is at least 1.
        response_mask: `[B, N]` bool.
    """
    positions, next_position = _positions(backbone, prompts)
    read = backbone(**prompts, position_ids=positions, use_cache=True)
    read.cache.batch_select_indices(rows)
    mask = torch.cat([prompts["attention_mask"][rows], response_mask.to(prompts["attention_mask"])], dim=1)
    offsets = torch.arange(response_ids.shape[1], device=rows.device)
    following = None if next_position is None else (next_position[rows, None] + offsets).expand(3, -1, -1)
    answered = backbone(
        input_ids=response_ids, attention_mask=mask, position_ids=following, cache=read.cache, use_cache=True
    )
    first = read.last_hidden_state[:, -1:].index_select(0, rows)
    return torch.cat([first, answered.last_hidden_state[:, :-1]], dim=1)


def _positions(backbone: Any, prompts: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """mRoPE positions of the prompts `[3, P, L]` and of the token after each `[P]`; None where the model counts itself.

    They are given and not left to the model, which keeps offsets from one call to the next.
    """
    if not hasattr(backbone, "get_rope_index"):
        return None, None
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    if "image_grid_thw" not in prompts:  # as the model does for a batch without images: columns, padding included
        columns = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        return columns, torch.full((ids.shape[0],), ids.shape[1], device=ids.device)
    positions, _ = backbone.get_rope_index(
        ids,
        image_grid_thw=prompts["image_grid_thw"],
        attention_mask=mask,
        mm_token_type_ids=prompts["mm_token_type_ids"],
    )
    return positions, positions.masked_fill(mask == 0, -1).amax(dim=(0, 2)) + 1
