"""The shape of a model: the widths and depths from which its weights, activations and products are counted."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionShape:
    """The tower of a Qwen3-VL: patches in, one token of the language model out of every `merge ** 2` of them."""

    hidden: int
    layers: int
    mlp: int
    patch_inputs: int
    """values of one patch: channels * frames * height * width"""
    patch_size: int
    """pixels, of a side"""
    positions: int
    merge: int
    deepstack: int
    """layers whose features are added in the language model's first layers too, each with a merger of its own"""
    out: int

    @property
    def pixels_a_token(self) -> int:
        """Pixels of an image that become one token of the language model."""
        return (self.patch_size * self.merge) ** 2

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole tower."""
        merged = self.hidden * self.merge**2
        block = 2 * 2 * self.hidden + _linear(self.hidden, 3 * self.hidden) + _linear(self.hidden, self.hidden)
        block += _linear(self.hidden, self.mlp) + _linear(self.mlp, self.hidden)
        merger = _linear(merged, merged) + _linear(merged, self.out)
        mergers = merger + 2 * self.hidden + self.deepstack * (merger + 2 * merged)
        embedding = _linear(self.patch_inputs, self.hidden) + self.positions * self.hidden
        return embedding + self.layers * block + mergers

    @property
    def linear_widths(self) -> list[tuple[int, int, int]]:
        """(count, inputs, outputs) of its linear layers."""
        merged, one_each = self.hidden * self.merge**2, 1 + self.deepstack
        return [
            (self.layers, self.hidden, 3 * self.hidden),
            (self.layers, self.hidden, self.hidden),
            (self.layers, self.hidden, self.mlp),
            (self.layers, self.mlp, self.hidden),
            (one_each, merged, merged),
            (one_each, merged, self.out),
        ]


@dataclass(frozen=True)
class ModelShape:
    """A causal language model of the Qwen3 family, with a vision tower or without."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    """whether the output head is the embedding"""
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

    @property
    def layer_parameters(self) -> int:
        """One decoder layer's: four projections, three of the MLP, four norms."""
        norms = 2 * self.hidden + 2 * self.head_dim
        return sum(count * inputs * outputs for count, inputs, outputs in self._layer_widths) + norms

    @property
    def body_parameters(self) -> int:
        """Those that every token passes through: decoder layers and the last norm."""
        return self.layers * self.layer_parameters + self.hidden

    @property
    def parameters(self) -> int:
        """All, tied weights counted once."""
        tables = self.head_parameters * (1 if self.tied else 2)
        return self.body_parameters + tables + (self.vision.parameters if self.vision else 0)

    def adapter_parameters(self, rank: int, target_modules: str) -> int:
        """LoRA's: `rank * (inputs + outputs)` of every adapted linear layer.

        Args:
            target_modules: as peft takes it: names, comma-separated, or "all-linear", the head excepted.
        """
        layers = [(self.layers * count, i, o) for count, i, o in self._layer_widths]
        if target_modules == "all-linear":
            layers += self.vision.linear_widths if self.vision else []
        else:
            names = {name.strip() for name in target_modules.split(",")}
            layers = [(self.layers, *_projection(self, name)) for name in PROJECTIONS if name in names]
        return sum(count * rank * (inputs + outputs) for count, inputs, outputs in layers)

    @property
    def _layer_widths(self) -> list[tuple[int, int, int]]:
        return [(1, *_projection(self, name)) for name in PROJECTIONS]


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def shape_of(config: Any, name: str) -> ModelShape:
    """The shape that a transformers configuration of the Qwen3 or Qwen3-VL family describes.

    Raises:
        ValueError: it is of another family, whose layers are not counted here.
    """
    if config.model_type not in ("qwen3", "qwen3_vl"):
        raise ValueError(f"model type {config.model_type!r} is not counted, only qwen3 and qwen3_vl")
    text = config.get_text_config()
    vision = config.vision_config if config.model_type == "qwen3_vl" else None
    return ModelShape(
        name=name,
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        mlp=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        tied=config.tie_word_embeddings,
        vision=None if vision is None else vision_shape_of(vision),
    )


def vision_shape_of(vision: Any) -> VisionShape:
    """The shape that the configuration of a Qwen3-VL vision tower describes."""
    return VisionShape(
        hidden=vision.hidden_size,
        layers=vision.depth,
        mlp=vision.intermediate_size,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        patch_size=vision.patch_size,
        positions=vision.num_position_embeddings,
        merge=vision.spatial_merge_size,
        deepstack=len(vision.deepstack_visual_indexes),
        out=vision.out_hidden_size,
    )


def _projection(shape: ModelShape, name: str) -> tuple[int, int]:
    """Inputs and outputs of one of a layer's `PROJECTIONS`."""
    return {
        "q_proj": (shape.hidden, shape.queries),
        "k_proj": (shape.hidden, shape.keys),
        "v_proj": (shape.hidden, shape.keys),
        "o_proj": (shape.queries, shape.hidden),
        "gate_proj": (shape.hidden, shape.mlp),
        "up_proj": (shape.hidden, shape.mlp),
        "down_proj": (shape.mlp, shape.hidden),
    }[name]


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
