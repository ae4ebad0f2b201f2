"""Shapes are counted exactly as the models that they describe."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, PreTrainedModel, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

from dopd_vl.common.errors import UserError
from dopd_vl.common.resources import find_model
from dopd_vl.planning.catalogue import gpu_of, known_models, model_shape, published

PUBLISHED = sorted(known_models())
NANO = ["nano:text-student", "nano:vision-student"]
CLASSES: dict[str, type[PreTrainedModel]] = {
    "qwen3": Qwen3ForCausalLM,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}


def on_meta(name: str) -> PreTrainedModel:
    """The whole model, without memory for its weights."""
    files = known_models()
    config = published(files[name])[0] if name in files else AutoConfig.from_pretrained(find_model(name))
    with torch.device("meta"):
        model = CLASSES[config.model_type](config)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", [*PUBLISHED, *NANO])
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    assert model_shape(name, "model.student").parameters == sum(p.numel() for p in on_meta(name).parameters())


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-VL-2B-Instruct"])
@pytest.mark.parametrize("modules", ["all-linear", "q_proj,v_proj"])
def test_adapters_are_those_that_peft_adds(name: str, modules: str) -> None:
    names = modules if modules == "all-linear" else modules.split(",")
    with torch.device("meta"):
        adapted = get_peft_model(on_meta(name), LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert model_shape(name, "model.student").adapter_parameters(4, modules) == added


def test_a_folder_and_a_file_of_shapes_do_as_well_as_a_known_id(tmp_path: Path) -> None:
    known = model_shape("Qwen/Qwen3-0.6B", "model.student")
    file = tmp_path / "mine.yaml"
    file.write_text(known_models()["Qwen/Qwen3-0.6B"].read_text())
    published(file)[0].save_pretrained(tmp_path / "folder")
    for given in (file, tmp_path / "folder"):
        assert model_shape(str(given), "model.student").parameters == known.parameters


def test_an_unknown_model_says_how_to_give_its_shape() -> None:
    with pytest.raises(UserError, match=r"model.teacher: the shape of 'Qwen/Qwen3-8b' .*Qwen3-8B.*config.json"):
        model_shape("Qwen/Qwen3-8b", "model.teacher")


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="'llama' is not counted"):
        model_shape(str(tmp_path), "model.student")


def test_an_unknown_gpu_names_the_known_ones() -> None:
    assert gpu_of("h200").memory_gb == 141
    with pytest.raises(UserError, match="did you mean 'h100'"):
        gpu_of("h1000")
