"""What is asked of a model, with adapters or without, by those who score it and those who train it."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from dopd_vl.common.errors import UserError, one_line
from dopd_vl.common.resources import find_model


def load_config(name: str, key: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model folder or hub id.

    Raises:
        UserError: it cannot be found or read, or the folder has no safetensors weights or adapters alone; the message
            names the setting.
    """
    path = find_model(name)
    base = base_of_adapters(path, key)
    if base is not None:
        raise UserError(
            f"{key}: {path} holds adapters of {base} and no whole model; join them first (peft: merge_and_unload, "
            "save_pretrained)"
        )
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise UserError(f"{key}: no folder {path}")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a damaged file, whatever transformers trips over
        raise UserError(
            f"{key}: {name!r} is neither a model folder nor a model that can be fetched ({_told(error)})"
        ) from error
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        raise UserError(
            f"{key}: {path} holds no .safetensors weights; other formats are pickles, which can run code when they are "
            "read: save the model with safetensors first"
        )
    return config


@contextmanager
def reading(key: str, path: str) -> Iterator[None]:
    """What a library trips over in a damaged model folder becomes one line that names the setting and the folder.

    Raises:
        UserError: in place of any other error, but for a full memory.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be loaded ({_told(error)})") from error


def check_weights(path: str, key: str, config: PreTrainedConfig) -> None:
    """Whether a folder holds every weight of the model that its configuration describes, in its shape, and numbers.

    transformers itself looks for them, without memory for any. Numbers are looked at in the first rows of each tensor:
    a model that diverged has none there. Of a hub id nothing is known before it is fetched.

    Raises:
        UserError: it does not.
    """
    if not Path(path).is_dir():
        return
    settings = Path(path) / "generation_config.json"
    if settings.is_file():
        with reading(key, str(settings)):
            GenerationConfig.from_pretrained(path)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with reading(key, path):
        load: Any = kind.from_pretrained
        _, found = load(
            path, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True
        )
    if found["missing_keys"]:
        raise UserError(f"{key}: {path} lacks weights of its model: {_some(found['missing_keys'])}")
    if found["mismatched_keys"]:
        other = [f"{name} has {list(theirs)} for {list(ours)}" for name, theirs, ours in found["mismatched_keys"]]
        raise UserError(f"{key}: {path} holds weights of other shapes than its config.json says: {_some(other)}")
    _check_numbers(Path(path), key)


def check_adapters(path: str, key: str) -> None:
    """Whether a folder of adapters can be read.

    Raises:
        UserError: it cannot.
    """
    with reading(key, path):
        PeftConfig.from_pretrained(path)
    _check_numbers(Path(path), key)


def _check_numbers(folder: Path, key: str) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        with reading(key, str(file)), safe_open(file, framework="pt") as tensors:
            bad = [name for name in tensors.keys() if not _begins_with_numbers(tensors.get_slice(name))]  # noqa: SIM118
        if bad:
            raise UserError(f"{key}: {file} holds NaN or infinity, as of a model that diverged: {_some(bad)}")


def _begins_with_numbers(tensor: Any) -> bool:
    shape = tensor.get_shape()
    first = tensor[: max(1, _LOOKED_AT // math.prod(shape[1:]))] if shape and math.prod(shape) else tensor[...]
    return not first.is_floating_point() or bool(first.float().isfinite().all())


_LOOKED_AT = 65_536
"""Numbers of each tensor."""


def _some(names: Collection[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"[:250]


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


def base_of_adapters(path: str, key: str) -> str | None:
    """The model that a folder's adapters were trained on, a folder or a hub id; None where `path` is no such folder.

    Raises:
        UserError: the folder does not say, or its adapters are no safetensors; the message begins with `key`.
    """
    described = Path(path) / CONFIG_NAME
    if not described.is_file():
        return None
    try:
        base = json.loads(described.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(f"{key}: {described} does not name the model that its adapters belong to")
    if not (Path(path) / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise UserError(f"{key}: {path} holds no {SAFETENSORS_WEIGHTS_NAME}; other formats can run code when read")
    return base


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes matrix products in at the moment, None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@contextmanager
def cast_once(model: torch.nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """While it lasts, linear layers have their fp32 weights in the autocast's `dtype`; None leaves them as they are.

    Autocast casts every weight anew in each outermost `autocast`, of which accelerate makes one a forward pass, and one
    that does not learn in every pass: for each token of a rollout. The values are the same either way. It takes the
    memory of one copy in `dtype`. Embeddings and norms stay in fp32, as autocast has them, and a head that shares its
    embedding's weight has a copy of its own. Meant for models whose weights are whole.
    """
    kept: list[tuple[torch.nn.Linear, str, torch.nn.Parameter]] = []
    try:
        for layer in model.modules() if dtype is not None else ():
            if type(layer) is not torch.nn.Linear:  # quantised ones cast by themselves
                continue
            for name, own in list(layer.named_parameters(recurse=False)):
                if type(own) is torch.nn.Parameter and own.dtype == torch.float32:
                    kept.append((layer, name, own))
                    setattr(layer, name, torch.nn.Parameter(own.detach().to(dtype), requires_grad=False))
        yield
    finally:
        for layer, name, own in kept:
            setattr(layer, name, own)


def leave_out_router_logits(config: Any) -> None:
    """What routes tokens to experts is recorded for a balancing loss, which is none of these losses: each pass would
    keep it, and transformers computes that loss even while it generates, where it fails on padded prompts."""
    text_config = config.get_text_config()
    if getattr(text_config, "output_router_logits", False):
        text_config.output_router_logits = False


def refuse_scaled_logits(config: Any, policy: str) -> None:
    """The losses read logits as `hidden @ head.T`: a family that scales or caps them would be taught wrongly.

    Raises:
        ValueError: this one does.
    """
    text_config = config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"):
        value = getattr(text_config, name, None)
        if value is not None and value != 1:
            raise ValueError(f"the {policy} scales its logits ({name}={value}), which is not supported")
