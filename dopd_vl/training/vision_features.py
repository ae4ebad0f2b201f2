"""An image is looked at once: rollouts, siblings and other views of the same images share its vision features.

Within one optimizer step a policy's weights stand still from its rollouts to the first backward pass. Whatever it
computes of an image without a gradient in that time can be used again.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """Of one image: what enters the language model, `[tokens, H]`, and what DeepStack adds in its first layers, None
    for a family without it."""

    pooled: Tensor
    deepstack: tuple[Tensor, ...] | None


class Count(NamedTuple):
    """How many images were asked for, and how many the tower looked at."""

    asked: int
    computed: int


@dataclass
class SharedFeatures:
    """What is known so far, by the name of whose weights the model has at the moment."""

    counts: list[Count] = field(default_factory=list)
    """one for each call that was served"""
    known: dict[str, dict[bytes, Features]] = field(default_factory=lambda: defaultdict(dict))
    weights: str = ""

    @contextmanager
    def of(self, weights: str) -> Iterator[None]:
        """While it lasts, the model has these weights in place of its own."""
        before, self.weights = self.weights, weights
        try:
            yield
        finally:
            self.weights = before


@contextmanager
def shared_vision_features(model: Any) -> Iterator[SharedFeatures]:
    """While it lasts, `model` computes each image's features once, wherever no gradient is asked for.

    In training mode, where dropout may make them others each time, they are neither kept nor used again. Images are
    told apart by their pixels. A model without a Qwen-VL style `get_image_features` is left as it is. The
    weights must not change meanwhile, unless `SharedFeatures.of` is told. Not for a model whose weights are sharded:
    ranks that skip the tower would leave the others waiting.
    """
    body = _vision_language_body(model)
    shared = SharedFeatures()
    if body is None:
        yield shared
        return
    compute = body.get_image_features

    output_class: Any = None

    def get_image_features(pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs: Any) -> Any:
        nonlocal output_class
        if torch.is_grad_enabled() or body.training or image_grid_thw is None:
            return compute(pixel_values, image_grid_thw, **kwargs)
        known = shared.known[shared.weights]
        images = pixel_values.split(image_grid_thw.prod(-1).tolist())
        keys = [_key(image, grid) for image, grid in zip(images, image_grid_thw, strict=True)]
        new = {key: at for at, key in reversed(list(enumerate(keys))) if key not in known}
        if new:
            at = sorted(new.values())
            found = compute(torch.cat([images[i] for i in at]), image_grid_thw[at], **kwargs)
            stack = found.get("deepstack_features")
            for place, i in enumerate(at):
                deepstack = None if stack is None else tuple(layer[place] for layer in stack)
                known[keys[i]] = Features(found.pooler_output[place], deepstack)
            output_class = type(found)
        shared.counts.append(Count(len(keys), len(new)))
        chosen = [known[key] for key in keys]
        assert output_class is not None
        layers = [features.deepstack for features in chosen if features.deepstack is not None]
        stacked = {"deepstack_features": [tuple(layer) for layer in zip(*layers, strict=True)]} if layers else {}
        return output_class(pooler_output=tuple(features.pooled for features in chosen), **stacked)

    body.get_image_features = get_image_features
    try:
        yield shared
    finally:
        del body.get_image_features


def _vision_language_body(model: Any) -> Any | None:
    """The module whose forward pass calls `self.get_image_features`, through adapters and wrappers."""
    for module in model.modules():
        if hasattr(module, "get_image_features") and "visual" in module._modules:
            return module
    return None


def _key(image: Tensor, grid: Tensor) -> bytes:
    content = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(content.view(torch.uint8).numpy().tobytes(), digest_size=16)
    digest.update(repr((grid.tolist(), str(content.dtype))).encode())
    return digest.digest()
