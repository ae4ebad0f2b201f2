"""Shapes are counted exactly as the models that they describe."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors import safe_open

from dopd_vl.common.errors import UserError
from dopd_vl.common.resources import find_model, shipped
from dopd_vl.planning.catalogue import gpu_of, known_models, model_shape, published
from dopd_vl.planning.shapes import built

PUBLISHED = {name: published(file) for name, file in sorted(known_models().items())}
NANO = ["nano:text-student", "nano:vision-student"]
# Billions of parameters without the embedding, and of those that a token passes through, by the models' cards.
NON_EMBEDDING = {"0.6B": 0.44, "1.7B": 1.4, "4B": 3.6, "8B": 6.95, "14B": 13.2, "32B": 31.2, "30B-A3B": 29.9}
ACTIVE = {"Qwen3-30B-A3B": 3.3, "Qwen3.5-35B-A3B": 3, "Qwen3.5-122B-A10B": 10, "Qwen3.5-397B-A17B": 17}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_were_published(name: str) -> None:
    config, count = PUBLISHED[name]
    shape = model_shape(name, "model.student")
    assert shape.parameters == count
    assert shape.tied == config.tie_word_embeddings
    assert (shape.vision is not None) == ("VL" in name or "3.5" in name)


@pytest.mark.parametrize("size", NON_EMBEDDING)
def test_those_without_the_embedding_are_as_many_as_its_card_says(size: str) -> None:
    shape = model_shape(f"Qwen/Qwen3-{size}", "model.student")
    assert shape.body_parameters / 1e9 == pytest.approx(NON_EMBEDDING[size], abs=0.05)
    tables = shape.head_parameters * (1 if shape.tied else 2)
    assert shape.body_parameters + tables == shape.parameters


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_passes_through_as_many_as_a_mixtures_name_says(name: str) -> None:
    shape = model_shape(f"Qwen/{name}", "model.student")
    assert (shape.active_parameters + shape.head_parameters) / 1e9 == pytest.approx(ACTIVE[name], rel=0.15)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "3.5" in name])
def test_what_the_hub_holds_and_transformers_leaves_is_the_layer_for_several_tokens(name: str) -> None:
    # A projection of two hidden states to one, three norms, and a layer with attention.
    content = yaml.safe_load(known_models()[name].read_text())
    model = built(PUBLISHED[name][0])
    hidden = model.get_decoder().norm.weight.numel()
    layer = sum(weight.numel() for weight in model.get_decoder().layers[-1].parameters())
    assert content["not_loaded"] == 2 * hidden**2 + 3 * hidden + layer


@pytest.mark.parametrize("name", NANO)
def test_a_shipped_models_parameters_are_those_in_its_file(name: str) -> None:
    with safe_open(Path(find_model(name)) / "model.safetensors", framework="pt") as weights:
        count = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    assert model_shape(name, "model.student").parameters == count


def test_the_sizes_that_were_asked_for_are_there() -> None:
    sizes = {
        "Qwen3-": ["0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B"],
        "Qwen3-VL-": [f"{size}-Instruct" for size in ("2B", "4B", "8B", "32B", "30B-A3B")],
        "Qwen3.5-": ["0.8B", "2B", "4B", "9B", "27B", "35B-A3B", "122B-A10B", "397B-A17B"],
    }
    assert set(PUBLISHED) == {f"Qwen/{family}{size}" for family, found in sizes.items() for size in found}


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-30B-A3B"])
@pytest.mark.parametrize("modules", ["all-linear", "q_proj,v_proj"])
@pytest.mark.filterwarnings("ignore:The following")  # of experts whose ranks peft multiplies
def test_adapters_are_those_that_peft_adds(name: str, modules: str) -> None:
    names = modules if modules == "all-linear" else modules.split(",")
    with torch.device("meta"):
        adapted = get_peft_model(
            built(PUBLISHED[name][0]), LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM")
        )
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert model_shape(name, "model.student").adapter_parameters(4, modules) == added


def test_a_folder_and_a_file_of_shapes_do_as_well_as_a_known_id(tmp_path: Path) -> None:
    known = model_shape("Qwen/Qwen3-0.6B", "model.student")
    file = tmp_path / "mine.yaml"
    file.write_text(known_models()["Qwen/Qwen3-0.6B"].read_text())
    published(file)[0].save_pretrained(tmp_path / "folder")
    for given in (file, tmp_path / "folder", tmp_path / "folder" / "config.json"):
        assert model_shape(str(given), "model.student").parameters == known.parameters


def test_an_unknown_model_says_how_to_give_its_shape() -> None:
    with pytest.raises(UserError, match=r"model.teacher: the shape of 'Qwen/Qwen3-8b' .*Qwen3-8B.*config.json"):
        model_shape("Qwen/Qwen3-8b", "model.teacher")


@pytest.mark.parametrize("described", [{"model_type": "bert"}, {"model_type": "t5"}, {"model_type": "whatever"}])
def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, described: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"^model\.student: "):
        model_shape(str(tmp_path), "model.student")


# Parameters of the families' own default configurations; of GPT-2's smallest and Llama's first 7B they are well known.
@pytest.mark.parametrize(("family", "parameters"), [("llama", 6_738_415_616), ("gpt2", 124_439_808)])
def test_another_family_is_counted_by_its_folder(tmp_path: Path, family: str, parameters: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert model_shape(str(tmp_path), "model.student").parameters == parameters


def test_an_unknown_gpu_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="gpu: unknown GPU 'h1000', did you mean 'h100'"):
        gpu_of("h1000", "gpu")


def test_gpus_of_24_to_192_gb_have_the_bytes_that_a_process_finds() -> None:
    gpus = [gpu_of(name, "gpu") for name in yaml.safe_load(shipped("data/gpus.yaml").read_text())]
    assert {24, 32, 40, 48, 80, 94, 96, 141, 180, 192} == {gpu.memory_gb for gpu in gpus}
    # A name counts neither in GB nor quite in GiB: drivers and error correction keep up to a tenth.
    assert all(0.9 * gpu.memory_gb * 2**30 < gpu.bytes <= gpu.memory_gb * 2**30 for gpu in gpus)
