"""Model folders that are damaged, in every file: one line that names the folder, and nothing is claimed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dopd_vl.cli import main

Damage = Callable[[Path], object]


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:200])


def zeroed(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def missing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def content(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def setting(name: str, key: str, value: Any) -> Damage:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, key: value}))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def header(length: int) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])

    return damage


def sharded(without: str = "", absent: str = "", cut_index: bool = False) -> Damage:
    """Two shards and an index, of which a shard is missing, or that names a tensor that no shard holds."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        files = {name: f"model-0000{1 + (n % 2)}-of-00002.safetensors" for n, name in enumerate(names)}
        for file in set(files.values()):
            save_file({n: tensors[n] for n in names if files[n] == file and n != absent}, folder / file)
        if without:
            (folder / without).unlink()
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": files})
        (folder / "model.safetensors.index.json").write_text(index[:99] if cut_index else index)

    return damage


GATE = "model.layers.0.mlp.gate_proj.weight"
TEXT: dict[str, tuple[Damage, str]] = {
    "no config": (missing("config.json"), "config.json"),
    "cut config": (cut("config.json"), "config.json"),
    "zeroed config": (zeroed("config.json"), "config.json"),
    "empty config": (content("config.json", ""), "config.json"),
    "config of a list": (content("config.json", "[1]"), "neither a model folder"),
    "unknown type": (setting("config.json", "model_type", "qwen99"), "qwen99"),
    "size of text": (setting("config.json", "hidden_size", "many"), "hidden_size"),
    "size of nothing": (setting("config.json", "num_attention_heads", 0), "cannot be loaded"),
    "no such dtype": (setting("config.json", "dtype", "float99"), "float99"),
    "no weights": (missing("model.safetensors"), "no .safetensors weights"),
    "cut weights": (cut("model.safetensors"), "header"),
    "zeroed weights": (zeroed("model.safetensors"), "header"),
    "long header": (header(10**12), "header"),
    "short header": (header(30), "header"),
    "missing weight": (weights(lambda w: w.pop(GATE)), f"lacks weights of its model: {GATE}"),
    "other shape": (weights(lambda w: w.update({GATE: torch.zeros(3, 3)})), f"{GATE} has [3, 3] for "),
    "not a number": (
        weights(lambda w: w[GATE].fill_(torch.nan)),
        f"holds NaN or infinity, as of a model that diverged: {GATE}",
    ),
    "missing shard": (sharded(without="model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
    "index of absent": (sharded(absent=GATE), f"lacks weights of its model: {GATE}"),
    "cut index": (sharded(cut_index=True), "cannot be loaded"),
    "cut tokenizer": (cut("tokenizer.json"), "cannot be loaded"),
    "zeroed tokenizer": (zeroed("tokenizer.json"), "cannot be loaded"),
    "cut tokenizer_config": (cut("tokenizer_config.json"), "cannot be loaded"),
    "cut generation_config": (content("generation_config.json", "{"), "generation_config.json"),
}
OF_WHO_TALKS: dict[str, tuple[Damage, str]] = {
    "no tokenizer": (missing("tokenizer.json"), "has no tokens for a text"),
    "broken template": (content("chat_template.jinja", "{% for m in messages %}"), "chat template"),
    "template of nothing": (content("chat_template.jinja", "{{ messages.nothing.at_all }}"), "chat template"),
    "small vocabulary": (
        setting(
            "tokenizer.json",
            "added_tokens",
            [
                {
                    "id": 99_999,
                    "content": "<|x|>",
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
            ],
        ),
        "has a token 640, and the model knows 640 alone",
    ),
}
VISION: dict[str, tuple[Damage, str]] = {
    "no processor": (missing("processor_config.json"), "cannot be loaded"),
    "cut processor": (cut("processor_config.json"), "cannot be loaded"),
    "patches of nothing": (setting("processor_config.json", "image_processor", {"patch_size": 0}), "cannot be loaded"),
}
CASES = [
    *((role, "text", name) for role in ("student", "teacher") for name in TEXT),
    *(("student", "text", name) for name in OF_WHO_TALKS),
    *(("student", "vision", name) for name in VISION),
]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[list[object]], str]:
    """What a command that ends with one line says in it."""

    def run(words: list[object]) -> str:
        assert main([str(word) for word in words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning: " not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.mark.parametrize(("role", "world", "name"), CASES)
def test_a_damaged_model_is_one_line_and_no_folder_is_claimed(
    role: str,
    world: str,
    name: str,
    nano_models: Path,
    text_data: Path,
    vision_data: Path,
    tmp_path: Path,
    told: Callable[[list[object]], str],
) -> None:
    damage, message = {**TEXT, **OF_WHO_TALKS, **VISION}[name]
    folder = tmp_path / "model"
    shutil.copytree(nano_models / f"{world}-{role}", folder)
    damage(folder)
    data = {"text": text_data, "vision": vision_data}[world]
    models = {"student": nano_models / f"{world}-student", "teacher": nano_models / f"{world}-teacher", role: folder}
    words: list[object] = ["train", "--model.student", models["student"], "--model.teacher", models["teacher"]]
    words += ["--data.train", data, "--output_dir", tmp_path / "run", "--training.max_steps", 1]
    words += ["--training.per_device_train_batch_size", 2, "--training.num_generations", 2]
    line = told(words)
    assert message in line
    assert str(folder) in line
    assert f"model.{role}" in line
    assert not (tmp_path / "run").exists()
    if role == "student":
        line = told(["evaluate", "--model", folder, "--data", data, "--output_dir", tmp_path / "out"])
        assert message in line
        assert str(folder) in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in TEXT if "config" in name and name.split()[-1] == "config"])
def test_a_plan_says_so_too(name: str, nano_models: Path, tmp_path: Path, told: Callable[[list[object]], str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(nano_models / "text-student", folder)
    TEXT[name][0](folder)
    line = told(["plan", "--model.student", folder, "--model.teacher", nano_models / "text-teacher"])
    assert str(folder) in line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda adapters, base: shutil.rmtree(base), "the base of its adapters"),
        (lambda adapters, base: cut("model.safetensors")(base), "the base of its adapters"),
        (lambda adapters, base: cut("adapter_config.json")(adapters), "does not name the model"),
        (lambda adapters, base: setting("adapter_config.json", "peft_type", "NONE")(adapters), "cannot be loaded"),
        (lambda adapters, base: cut("adapter_model.safetensors")(adapters), "cannot be loaded"),
    ],
    ids=["no base", "cut base", "cut config", "unknown kind", "cut weights"],
)
def test_damaged_adapters_are_one_line(
    damage: Callable[[Path, Path], object],
    message: str,
    nano_models: Path,
    text_data: Path,
    tmp_path: Path,
    told: Callable[[list[object]], str],
) -> None:
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    shutil.copytree(nano_models / "text-student", base)
    shutil.copytree(base, adapters, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(adapters)
    damage(adapters, base)
    line = told(["evaluate", "--model", adapters, "--data", text_data, "--output_dir", tmp_path / "out"])
    assert message in line
    assert not (tmp_path / "out").exists()
