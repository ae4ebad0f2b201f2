"""Pluggable processors: example + variant -> model inputs, for text and vision-language models alike."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from dopd_vl.views.base import Refusal, Request, View, ViewError, ViewProcessor
from dopd_vl.views.qwen_vl import QwenVLViewProcessor, limit_images
from dopd_vl.views.text import TextViewProcessor

__all__ = [
    "VISION_PROCESSORS",
    "QwenVLViewProcessor",
    "Refusal",
    "Request",
    "TextViewProcessor",
    "View",
    "ViewError",
    "ViewProcessor",
    "check_family",
    "limit_images",
    "processor_for",
]

VISION_PROCESSORS: dict[str, type[ViewProcessor]] = {
    "qwen3_vl": QwenVLViewProcessor,
    "qwen3_vl_moe": QwenVLViewProcessor,
}
"""Model type (of a model's own config) -> processor. Every model type without a vision tower is read as text."""


def processor_for(
    config: PreTrainedConfig,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    max_prompt_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> ViewProcessor:
    """The processor that a model's own config asks for.

    Raises:
        ValueError: a vision-language model of a family without a processor, or one given a bare tokenizer.
    """
    check_family(config)
    if config.model_type in VISION_PROCESSORS:
        if not isinstance(processing_class, ProcessorMixin):
            raise ValueError(f"a {config.model_type} model needs its processor, got {type(processing_class).__name__}")
        chosen = VISION_PROCESSORS[config.model_type]
    else:
        chosen = TextViewProcessor
    return chosen(config, processing_class, max_prompt_length, chat_template_kwargs)


def check_family(config: PreTrainedConfig) -> None:
    """Raises: ValueError: a vision-language model of a family without a processor."""
    if hasattr(config, "vision_config") and config.model_type not in VISION_PROCESSORS:
        raise ValueError(
            f"no view processor for vision-language model type {config.model_type!r} (known: "
            f"{', '.join(VISION_PROCESSORS)}); pass your own ViewProcessor to the trainer"
        )
