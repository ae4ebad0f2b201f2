"""Pluggable processors: example + variant -> model inputs, for text and vision-language models alike."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from dopd_vl.common.errors import UserError
from dopd_vl.models import reading
from dopd_vl.train_config import PrivilegeSettings
from dopd_vl.views.base import Refusal, Request, View, ViewError, ViewProcessor
from dopd_vl.views.qwen_vl import QwenVLViewProcessor
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
    "bounded_views",
    "check_bounds",
    "check_family",
    "load_views",
    "processor_for",
]

VISION_PROCESSORS: dict[str, type[ViewProcessor]] = {
    "qwen3_vl": QwenVLViewProcessor,
    "qwen3_vl_moe": QwenVLViewProcessor,
    "qwen3_5": QwenVLViewProcessor,
    "qwen3_5_moe": QwenVLViewProcessor,
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


def check_bounds(privilege: PrivilegeSettings, reads_images: bool) -> None:
    """Raises: UserError: images are bounded that the student does not see; the message names the key."""
    for key in privilege.PIXELS:
        if getattr(privilege, key) is not None and not reads_images:
            raise UserError(f"privilege.{key}: bounds images, but the student reads text only")


def bounded_views(views: ViewProcessor, data: Any, privilege: PrivilegeSettings) -> dict[str, ViewProcessor]:
    """What shows images to the student, to its teacher and to its copy, each within its own bounds, by these names.

    Args:
        views: with the model's own bounds.
        data: has `min_pixels` and `max_pixels`, for whom `privilege` says nothing else.

    Raises:
        UserError: no image is within the bounds, or the student is shown none; the message names the key.
    """
    found = {}
    made: dict[tuple[int | None, int | None], ViewProcessor] = {(None, None): views}
    check_bounds(privilege, views.reads_images)
    for key in privilege.PIXELS:
        own = getattr(privilege, key)
        most, told = (data.max_pixels, "data.max_pixels") if own is None else (own, f"privilege.{key}")
        least, most = (data.min_pixels, most) if views.reads_images else (None, None)
        if (least, most) not in made:
            made[least, most] = views.bounded(least, most, told)
        found[key.removesuffix("_max_pixels")] = made[least, most]
    return found


def load_views(
    path: str,
    config: PreTrainedConfig,
    key: str,
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> ViewProcessor:
    """The processor of a model folder or hub id, once it has rendered a trial.

    Args:
        config: the model's own.
        key: what names the model, for errors.

    Raises:
        UserError: its tokenizer, processor or chat template is missing or damaged, or knows more tokens than the model.
    """
    with reading(key, path):
        load: Any = AutoProcessor.from_pretrained
        processing_class = load(path, padding_side="left", trust_remote_code=trust_remote_code)
        views = processor_for(config, processing_class, chat_template_kwargs=chat_template_kwargs)
        if views.tokenizer.pad_token is None:
            views.tokenizer.pad_token = views.tokenizer.eos_token
        highest, known = max(views.tokenizer.get_vocab().values()), config.get_text_config().vocab_size
    if highest >= known:
        raise UserError(f"{key}: the tokenizer in {path} has a token {highest}, and the model knows {known} alone")
    with reading(key, path):
        try:
            trial = views.view({"id": "1 + 1", "prompt": [{"role": "user", "content": "1 + 1"}]})
            if views.reads_images:
                views.picture  # noqa: B018 - made when it is asked for
        except ViewError as error:
            raise UserError(f"{key}: nothing can be shown to the model in {path}: {error}") from error
        if "1" not in views.tokenizer.decode(trial.prompt_ids):  # transformers makes an empty one of a missing file
            raise UserError(
                f"{key}: the tokenizer in {path} has no tokens for a text; its tokenizer.json may be missing"
            )
    return views
