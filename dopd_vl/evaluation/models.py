"""What is asked of a model, with adapters or without, by those who score it and those who train it."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel


def backbone_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model without its head, adapters in place."""
    unwrapped: Any = model.base_model.model if isinstance(model, PeftModel) else model
    return unwrapped.base_model


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Every token that ends a response: the model's own list and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))


def image_token_ids(config: Any) -> list[int]:
    """Placeholder and marker tokens of images and videos, which a response must not hold; empty for a text model."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return [getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)]


def forget_image_positions(model: PreTrainedModel) -> None:
    """Clear the mRoPE offsets that a Qwen-VL model keeps from its last batch: a text-only batch would reuse them."""
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None  # type: ignore[assignment]


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
