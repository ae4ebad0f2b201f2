"""Qwen3 and Qwen3-VL at CPU size: the real classes, a few layers.

Everything a large model of the family has is there: grouped-query attention with query and key norms, tied embeddings,
interleaved mRoPE, a vision tower with a patch merger and DeepStack.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    set_seed,
)

from dopd_vl.nano.scenes import SIZE
from dopd_vl.nano.tokenizer import MAX_LENGTH, MERGE_SIZE, PATCH_SIZE

Family = Literal["vision", "text"]
INIT_STD = 0.06  # at the usual 0.02 models this small take far longer to begin to learn
HEAD_DIM = 32


@dataclass(frozen=True)
class Shape:
    """Width, depth and MLP width of the language model and, for the vision family, of the vision tower."""

    family: Family
    hidden: int
    layers: int
    mlp: int
    vision_hidden: int = 0
    vision_layers: int = 0


SHAPES: dict[str, Shape] = {
    "vision-teacher": Shape("vision", 128, 4, 256, 96, 3),
    "vision-student": Shape("vision", 64, 2, 192, 64, 2),
    "text-teacher": Shape("text", 128, 4, 256),
    "text-student": Shape("text", 64, 3, 192),
}


def build_model(shape: Shape | str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """An untrained model of a shape, or of the one of that name in `SHAPES`, in fp32; a seed gives the same weights."""
    shape = SHAPES[shape] if isinstance(shape, str) else shape
    set_seed(seed)
    if shape.family == "vision":
        model: PreTrainedModel = Qwen3VLForConditionalGeneration(_vision_config(shape, tokenizer))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**_language(shape, tokenizer), rope_parameters=_rope()))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def _language(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    heads = shape.hidden // HEAD_DIM
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": INIT_STD,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _rope(**more) -> dict:
    return {"rope_type": "default", "rope_theta": 10000.0, **more}


def _vision_config(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    tower: dict[str, Any] = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": shape.vision_hidden // HEAD_DIM,
        "out_hidden_size": shape.hidden,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "num_position_embeddings": (SIZE // PATCH_SIZE) ** 2,
        # After the first layer of the tower, into the first layer of the language model.
        "deepstack_visual_indexes": [0],
        "initializer_range": INIT_STD,
    }
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids: dict[str, Any] = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()
    }
    # mRoPE: 16 frequency pairs of a 32-wide head shared out between time, height and width.
    rope = _rope(mrope_section=[6, 5, 5], mrope_interleaved=True)
    return Qwen3VLConfig(
        text_config={**_language(shape, tokenizer), "rope_parameters": rope},
        vision_config=tower,
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    )
