"""A smaller model of the same pretraining: the layers that change their input least are left out.

The influence of a layer is one less the cosine of its input and its output, averaged over tokens (ShortGPT,
arXiv 2403.03853).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel


@torch.no_grad()
def influences(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """The influence of each layer, 0 to 2, over the tokens of the batches, padding left out."""
    totals = [0.0] * len(_layers(model))
    tokens = 0
    kept = torch.empty(0)

    def measure(place: int, given: tuple[Any, ...], out: Any) -> None:
        after = out if isinstance(out, Tensor) else out[0]
        totals[place] += float((1 - cosine_similarity(given[0], after, dim=-1))[kept].sum())

    # Not `output_hidden_states`, whose last one has gone through the final norm.
    hooks = [
        layer.register_forward_hook(lambda _, given, out, place=place: measure(place, given, out))
        for place, layer in enumerate(_layers(model))
    ]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            kept = batch["attention_mask"].bool()
            tokens += int(kept.sum())
            model(**batch, use_cache=False, logits_to_keep=1)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise ValueError("there are no tokens to measure layers on")
    return [total / tokens for total in totals]


def most_influential(influence: Sequence[float], count: int) -> list[int]:
    """The positions of the `count` layers of the largest influence, in their order; of equal ones the first.

    >>> most_influential([0.9, 0.1, 0.3, 0.2], 2)
    [0, 2]
    """
    return sorted(sorted(range(len(influence)), key=lambda place: (-influence[place], place))[:count])


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave out all layers but these, in place; their weights stay as they are.

    Raises:
        ValueError: a position that the model has not, one named twice, or none.
    """
    layers = _layers(model)
    if not kept or len(set(kept)) != len(kept) or not all(0 <= place < len(layers) for place in kept):
        raise ValueError(f"layers {list(kept)} of {len(layers)}: name at least one, each once")
    body: Any = model.model
    body.layers = torch.nn.ModuleList([layers[place] for place in sorted(kept)])
    for place, layer in enumerate(body.layers):
        layer.self_attn.layer_idx = place  # where its keys stand in the cache
    model.config.num_hidden_layers = len(kept)
    types = getattr(model.config, "layer_types", None)
    if types is not None:
        model.config.layer_types = [types[place] for place in sorted(kept)]


def _layers(model: PreTrainedModel) -> Any:
    body: Any = model.model
    return body.layers
