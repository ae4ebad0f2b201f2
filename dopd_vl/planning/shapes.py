"""The shape of a model: what its weights, activations and products are counted from.

Weights are counted on the model itself, built by transformers from its configuration on the meta device, where it takes
no memory: whatever the family, they are exact. Widths are read from the configuration.
"""

import functools
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from dopd_vl.train_config import LoraSettings, Quantization
from dopd_vl.training.checks import peft_config
from dopd_vl.training.freezing import keep_adapters_out, part_of

QUANTISED_BYTES: dict[Quantization, float] = {"8bit": 1.0, "4bit": (4 + 8 / 64 + 32 / (64 * 256)) / 8}
"""Of a quantised weight; NF4 with its constants, one of 8 bits for 64 weights and one of 32 for 256 of those (QLoRA,
arXiv 2305.14314, section 3)."""
COUNTED = ("qwen3", "qwen3_vl")
"""Model types whose activations the formulas equal; those of others are estimated by the same formulas."""


@dataclass(frozen=True)
class VisionShape:
    """The tower of a Qwen3-VL: patches in, one token of the language model out of every `merge ** 2` of them."""

    parameters: int
    projector_parameters: int
    """of them, those of the mergers into the language model"""
    hidden: int
    layers: int
    mlp: int
    patch_inputs: int
    """values of one patch: channels * frames * height * width"""
    patch_size: int
    """pixels, of a side"""
    merge: int
    deepstack: int
    """layers whose features are added in the language model's first layers too, each with a merger of its own"""

    @property
    def pixels_a_token(self) -> int:
        """Pixels of an image that become one token of the language model."""
        return (self.patch_size * self.merge) ** 2


@dataclass(frozen=True)
class ModelShape:
    """A causal language model, with a vision tower or without."""

    name: str
    family: str
    """its model type"""
    vocabulary: int
    hidden: int
    layers: int
    attention_layers: int
    """those that keep keys and values of every token; the others keep a state of one size"""
    mlp: int
    """width that a token passes through: of a mixture, that of the experts chosen for it and of the shared one"""
    experts: int
    """chosen for a token; 0: no mixture"""
    heads: int
    kv_heads: int
    head_dim: int
    state_values: int
    """of one sequence, in a layer without attention"""
    state_width: int
    """of a token's values there"""
    head_norms: bool
    """whether queries and keys are normalised"""
    tied: bool
    """whether the output head is the embedding"""
    parameters: int
    """all, tied weights counted once"""
    layer_parameters: int
    """the largest decoder layer's"""
    body_parameters: int
    """of decoder layers and whatever stands beside them, without embedding, head and vision tower"""
    active_parameters: int
    """those of them that one token passes through; fewer in a mixture of experts"""
    linear_parameters: int
    """weights of linear layers, the vision tower's too, without the head: what bitsandbytes quantises"""
    widest_linear: int
    """those of the largest of these layers"""
    config: PreTrainedConfig = field(compare=False, repr=False)
    vision: VisionShape | None = None

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together; that of the values, too."""
        return self.kv_heads * self.head_dim

    @property
    def head_parameters(self) -> int:
        """The output head's: `[V, H]`."""
        return self.vocabulary * self.hidden

    def parameters_of(self, part: str) -> int:
        """Those of the "vision" tower, of the "projector" or of the "language" model."""
        tower, projector = (self.vision.parameters, self.vision.projector_parameters) if self.vision else (0, 0)
        return {"vision": tower - projector, "projector": projector, "language": self.parameters - tower}[part]

    def weight_bytes(self, size: int, quantization: Quantization | None = None) -> int:
        """Bytes of all weights.

        Args:
            size: of a weight that is not quantised, as embedding and head never are.
        """
        if quantization is None:
            return size * self.parameters
        rest = self.parameters - self.linear_parameters
        return math.ceil(self.linear_parameters * QUANTISED_BYTES[quantization]) + size * rest

    def adapter_parameters(self, rank: int, target_modules: str, frozen: tuple[str, ...] = ()) -> int:
        """LoRA's, counted on the model that peft adapts; every one of them is in proportion to the rank.

        Args:
            target_modules: as peft takes it: names, comma-separated, or "all-linear", the head excepted.
            frozen: parts that have none.
        """
        return rank * _adapters_of_rank_1(self, target_modules, frozen)


@functools.cache
def _adapters_of_rank_1(shape: ModelShape, target_modules: str, frozen: tuple[str, ...]) -> int:
    lora = keep_adapters_out(peft_config(LoraSettings(r=1, target_modules=target_modules)), frozen)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experts whose ranks peft multiplies
        adapted = get_peft_model(built(shape.config), lora)
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def built(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole model that a configuration describes, on the meta device."""
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(config)
    model.tie_weights()
    return model


def shape_of(config: PreTrainedConfig, name: str) -> ModelShape:
    """The shape that a configuration describes.

    Raises:
        ValueError: transformers builds no causal language model from it, or not one of decoder layers.
    """
    model, text = built(config), config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    decoder: Any = model.get_decoder()
    stacks = [part for part in decoder.children() if isinstance(part, nn.ModuleList)]
    layers = next((stack for stack in stacks if len(stack) == text.num_hidden_layers), None)
    if embedding is None or head is None or layers is None:
        raise ValueError(f"{config.model_type!r} has no decoder layers between an embedding and a head")
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * len(layers)
    attending = sum("attention" in kind and kind != "linear_attention" for kind in kinds)
    heads = text.num_attention_heads
    experts = _first(text, "num_experts_per_tok") or 0
    body = _count(decoder) - _count(embedding)
    linear = [part.weight.numel() for part in model.modules() if type(part) is nn.Linear and part is not head]
    return ModelShape(
        name=name,
        family=config.model_type,
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        layers=len(layers),
        attention_layers=attending,
        mlp=_mlp(text, experts),
        experts=experts,
        heads=heads,
        kv_heads=_first(text, "num_key_value_heads") or heads,
        head_dim=_first(text, "head_dim") or text.hidden_size // heads,
        state_values=_state_width(text) * (_first(text, "linear_key_head_dim") or 0),
        state_width=_state_width(text),
        head_norms=any(path.endswith("q_norm") for path, _ in decoder.named_modules()),
        tied=head.weight is embedding.weight,
        parameters=_count(model),
        layer_parameters=max(map(_count, layers)),
        body_parameters=body,
        active_parameters=body - _resting(decoder, experts, _first(text, "num_experts", "num_local_experts")),
        linear_parameters=sum(linear),
        widest_linear=max(linear, default=0),
        config=config,
        vision=_vision_of(config, model),
    )


def vision_shape_of(vision: Any, parameters: int = 0, projector_parameters: int = 0) -> VisionShape:
    """The shape that the configuration of a Qwen3-VL vision tower describes."""
    return VisionShape(
        parameters=parameters,
        projector_parameters=projector_parameters,
        hidden=vision.hidden_size,
        layers=vision.depth,
        mlp=vision.intermediate_size,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        patch_size=vision.patch_size,
        merge=vision.spatial_merge_size,
        deepstack=len(getattr(vision, "deepstack_visual_indexes", ())),
    )


def _vision_of(config: PreTrainedConfig, model: Any) -> VisionShape | None:
    if not hasattr(config, "vision_config"):
        return None
    weights = model.named_parameters()
    projector = sum(weight.numel() for name, weight in weights if part_of(name) == "projector")
    return vision_shape_of(config.vision_config, _count(model.model.visual), projector)


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _first(text: Any, *names: str) -> int | None:
    """The first of these fields that a family has."""
    return next((value for name in names if (value := getattr(text, name, None)) is not None), None)


def _mlp(text: Any, experts: int) -> int:
    if not experts:
        return _first(text, "intermediate_size", "ffn_dim", "n_inner") or 4 * text.hidden_size
    width = _first(text, "moe_intermediate_size", "intermediate_size") or 0
    return experts * width + (_first(text, "shared_expert_intermediate_size") or 0)


def _resting(decoder: nn.Module, chosen: int, experts: int | None) -> int:
    """Parameters of the experts that one token does not pass through."""
    if not chosen or not experts:
        return 0
    held = sum(weight.numel() for path, weight in decoder.named_parameters() if ".experts." in path)
    return held - math.ceil(held * chosen / experts)


def _state_width(text: Any) -> int:
    """Of a gated delta rule: the width of its values, of each of which a state holds a key's width."""
    return (_first(text, "linear_num_value_heads") or 0) * (_first(text, "linear_value_head_dim") or 0)
