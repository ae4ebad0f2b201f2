"""The formulas of activations, against what autograd saves: to the byte for decoder layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    Qwen3MoeConfig,
    Qwen3MoeModel,
)
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from dopd_vl.planning import activations as act
from dopd_vl.planning.shapes import shape_of, vision_shape_of
from dopd_vl.planning.workload import Precision

ROWS, TOKENS, RANK = 2, 96, 4


# No two of them are alike, so that weights are told from activations by their shapes.
WIDTHS = {
    "vocab_size": 64,
    "hidden_size": 320,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def text_config(layers: int) -> Qwen3Config:
    return Qwen3Config(**WIDTHS, num_hidden_layers=layers)


def saved_bytes(model: torch.nn.Module, run: Callable[[], Any], precision: Precision) -> int:
    """Bytes of the tensors that autograd keeps, each storage once, without weights and autocast's copies of them."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {s for p in model.parameters() for s in (tuple(p.shape), tuple(p.shape)[::-1])}
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        run()
    return sum(storages.values())


def of_one_layer(precision: Precision, lora: bool) -> float:
    """Bytes a token: a model of three layers less one of two."""
    found = []
    for layers in (3, 2):
        model: Any = Qwen3Model(text_config(layers))
        if lora:
            model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))
            model.enable_input_require_grads()
        found.append(saved_by(model, precision))
    return found[0] - found[1]


# Adapters in a bf16 model are fp32 here and bf16 where weights are sharded: that pair is left out.
@pytest.mark.parametrize(
    ("precision", "lora"),
    [("float32", False), ("float32", True), ("autocast", False), ("autocast", True), ("bfloat16", False)],
)
def test_a_decoder_layer_saves_what_the_formula_says(precision: Precision, lora: bool) -> None:
    shape = shape_of(text_config(2), "test")
    predicted = act.saved_by_layer(shape, precision, RANK if lora else 0)
    predicted += act.saved_keys(shape, precision) + TOKENS * act.saved_mask(precision)
    assert of_one_layer(precision, lora) == predicted


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_vision_tower_saves_what_the_formula_says(precision: Precision) -> None:
    config = Qwen3VLVisionConfig(
        depth=4,
        hidden_size=128,
        intermediate_size=320,
        num_heads=4,
        out_hidden_size=192,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0],
    )
    config._attn_implementation = "sdpa"
    model: Any = Qwen3VLVisionModel(config)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    grid = torch.tensor([[1, 8, 8], [1, 6, 8]])
    patches = int(grid.prod(-1).sum())
    pixels = torch.randn(patches, 3 * 2 * 16 * 16)
    found = saved_bytes(model, lambda: model(pixels, grid_thw=grid), precision) / patches
    assert act.saved_by_vision(vision_shape_of(config), precision, checkpointing=False) == pytest.approx(
        found, rel=0.03
    )


MIXTURE = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192, "mlp_only_layers": []}
HYBRID = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}


def llama(periods: int) -> PreTrainedModel:
    return LlamaModel(LlamaConfig(**WIDTHS, num_hidden_layers=periods))


def mixture(periods: int) -> PreTrainedModel:
    return Qwen3MoeModel(Qwen3MoeConfig(**WIDTHS, **MIXTURE, num_hidden_layers=periods))


def hybrid(periods: int) -> PreTrainedModel:
    kinds = [*["linear_attention"] * 3, "full_attention"] * periods
    return Qwen3_5TextModel(Qwen3_5TextConfig(**WIDTHS, **HYBRID, num_hidden_layers=4 * periods, layer_types=kinds))


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("family", [llama, mixture, hybrid])
def test_layers_of_other_families_save_about_what_the_formula_says(
    family: Callable[[int], PreTrainedModel], precision: Precision
) -> None:
    models = [family(periods) for periods in (2, 1)]
    found = saved_by(models[0], precision) - saved_by(models[1], precision)
    layers = models[0].config.num_hidden_layers - models[1].config.num_hidden_layers
    shape = shape_of(models[0].config, "test")
    predicted = act.saved_by_layer(shape, precision)
    predicted += act.saved_keys(shape, precision) + TOKENS * act.saved_mask(precision)
    assert layers * predicted == pytest.approx(found, rel=0.08)


def saved_by(model: Any, precision: Precision) -> float:
    """Bytes a token of a whole model."""
    model = model.to(torch.bfloat16) if precision == "bfloat16" else model
    ids = torch.randint(0, 64, (ROWS, TOKENS))
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[0, :5] = 0

    def run() -> Any:
        return model(input_ids=ids, attention_mask=mask, use_cache=False)

    return saved_bytes(model, run, precision) / (ROWS * TOKENS)


def test_checkpointing_keeps_less_the_more_layers_there_are() -> None:
    vision = vision_shape_of(Qwen3VLVisionConfig(depth=4))
    deeper = replace(vision, layers=24)
    for shape, least in ((vision, 1.5), (deeper, 4)):
        plain, checkpointed = (act.saved_by_vision(shape, "bfloat16", way) for way in (False, True))
        assert plain > least * checkpointed
