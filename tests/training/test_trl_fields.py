"""Every field of TRL's configuration is meant as TRL means it, or refused by name with the reason."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from trl import DistillationConfig

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.train_config import LoopSettings, TrainConfig
from dopd_vl.training import trl_fields
from dopd_vl.training.checks import check
from dopd_vl.training.run import load_examples
from dopd_vl.training.trl_fields import MEANT, ONLY_FROM_PYTHON, REFUSED, REFUSED_INSIDE
from tests.commands import dopd_vl
from tests.conftest import MakeTrainer
from tests.pages import text_of
from tests.training.test_nothing_to_learn import command, refuses

OTHERS: dict[str, Any] = {
    "label_names": ["labels"],
    "liger_kernel_config": {"rope": True},
    "ddp_static_graph": True,
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "teacher_model_name_or_path": "folder",
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
}
"""Values that are not the default, where neither `not default` nor 7 is one."""


def another(name: str) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    default = {f.name: f.default for f in dataclasses.fields(DistillationConfig)}[name]
    return not default if isinstance(default, bool) else 7


def test_every_field_stands_in_one_table() -> None:
    fields = {field.name for field in dataclasses.fields(DistillationConfig)}
    assert MEANT | set(REFUSED) == fields
    assert not MEANT & set(REFUSED)
    assert set(ONLY_FROM_PYTHON) | set(REFUSED_INSIDE) <= MEANT


def test_the_page_has_every_refusal_with_its_reason() -> None:
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", text_of("docs/trl-settings.md"), re.MULTILINE)
    told = [(name, why) for names, why in rows for name in re.findall(r"`([\w.]+)`", names)]
    inside = {f"{name}.{key}": why for name, keys in REFUSED_INSIDE.items() for key, why in keys.items()}
    assert sorted(told) == sorted([*REFUSED.items(), *inside.items(), *ONLY_FROM_PYTHON.items()])


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_field_is_named_with_the_reason_from_python(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as told:
        DopdConfig(str(tmp_path), use_cpu=True, **{name: another(name)})
    assert str(told.value) == f"{name}: {REFUSED[name]}"


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "parallelism_config"])  # no type of YAML
def test_a_refused_field_is_named_with_the_reason_in_a_configuration(name: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        check(TrainConfig(trl={name: another(name)}))
    assert str(told.value) == f"trl.{name}: {REFUSED[name]}"


@pytest.mark.parametrize("name", ONLY_FROM_PYTHON)
def test_what_follows_from_other_keys_cannot_be_set_in_a_configuration(name: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        check(TrainConfig(trl={name: None}))
    assert str(told.value) == f"trl.{name}: {ONLY_FROM_PYTHON[name]}"


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in REFUSED_INSIDE.items() for key in keys])
def test_a_refused_key_of_a_mapping_is_named(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"^trl\.{name}\.{key}: "):
        check(TrainConfig(trl={name: {key: 2}}))
    either = name.replace("gradient", "(activation|gradient)")  # one name stands for the other
    with pytest.raises(ConfigurationError, match=rf"^{either}\.{key}: "):
        DopdConfig(str(tmp_path), use_cpu=True, **{name: f'{{"{key}": true}}'})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("top_p", value) for value in (2.0, 0.0, -0.5, math.nan)],
        *[("top_k", value) for value in (-1, 2.5)],
        *[("min_p", value) for value in (-0.1, 1.5)],
        *[("repetition_penalty", value) for value in (0, -1.0, math.inf)],
        *[("pad_to_multiple_of", 0), ("neftune_noise_alpha", -5.0), ("adam_beta1", 1.0), ("adam_epsilon", -1.0)],
        *[("dataloader_num_workers", -1), ("generation_kwargs", {"top_p": 2.0}), ("generation_kwargs", {"top_k": -1})],
        *[("generation_kwargs", {"typical_p": 3.0}), ("generation_kwargs", {"epsilon_cutoff": 3.0})],
        *[("generation_kwargs", {"no_repeat_ngram_size": -1}), ("generation_kwargs", {"num_beams": 0})],
        *[("generation_kwargs", {"repetition_penalty": "high"}), ("generation_kwargs", {"max_time": -1.0})],
        *[("generation_kwargs", {"topp": 0.9}), ("generation_kwargs", {"assistant_early_exit": 2})],
        *[("generation_kwargs", {"presence_penalty": 1.0}), ("generation_kwargs", {"eos_token_id": 0})],
    ],
)
def test_a_value_that_transformers_would_pass_by_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    key = f"{name}.{next(iter(value))}" if isinstance(value, dict) else name
    with pytest.raises(ConfigurationError, match=rf"^trl\.{key}: "):
        check(TrainConfig(trl={name: value}))
    with pytest.raises(ConfigurationError, match=rf"^{key}: "):
        DopdConfig(str(tmp_path), use_cpu=True, **{name: value})
    given = json.dumps(value) if isinstance(value, dict) else value
    with pytest.raises(ConfigurationError, match=rf"^{key}: "):
        DopdConfig(str(tmp_path), use_cpu=True, **{name: given})


def test_vllm_judges_keys_of_its_own() -> None:
    def asking_for(penalty: float) -> TrainConfig:
        trl = {"generation_kwargs": {"presence_penalty": penalty}, "vllm_mode": "server"}
        return TrainConfig(trl=trl, training=LoopSettings(use_vllm=True))

    check(asking_for(1.0))
    with pytest.raises(ConfigurationError, match=r"^trl\.generation_kwargs\.presence_penalty: 3 is not "):
        check(asking_for(3))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": math.inf}, "temperature=inf must be above 0 and finite"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be at least 0"),
        ({"fp16": True}, "fp16=True needs a GPU"),
        ({"ddp_timeout": 77}, "ddp_timeout=77 needs a GPU"),
        ({"torch_empty_cache_steps": 3}, "torch_empty_cache_steps=3 needs a GPU"),
        ({"cache_implementation": "offloaded"}, "cache_implementation=offloaded needs a GPU"),
        ({"debug": "tpu_metrics_debug"}, "debug=.* needs a TPU"),
        ({"optim_target_modules": ["q_proj"]}, "optim_target_modules=.* is of GaLore and APOLLO"),
        ({"optim_args": "rank=3"}, "optim_args=rank=3 is not all read: optim=adamw_torch_fused knows no rank"),
        ({"optim": "sgd", "optim_args": "momentm=0.9"}, "optim_args=.*: optim=sgd knows no momentm"),
        (
            {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "gradient_checkpointing_kwargs=.* needs gradient_checkpointing=True",
        ),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers=True needs dataloader_num_workers"),
        ({"dataloader_multiprocessing_context": "fork"}, "dataloader_multiprocessing_context=fork needs"),
    ],
)
def test_what_nothing_would_read_is_refused(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        DopdConfig(str(tmp_path), use_cpu=True, **settings)


def test_the_command_names_the_key_of_what_nothing_would_read(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    words = command(nano_models, text_data, tmp_path / "run", "--trl.optim_args", "rank=3")
    refuses(words, "trl.optim_args: optim_args=rank=3 is not all read: optim=adamw_torch_fused knows no rank")
    assert not (tmp_path / "run").exists()


def test_a_field_that_a_later_trl_brings_is_refused_until_it_is_in_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trl_fields, "MEANT", MEANT - {"top_p"})
    DopdConfig(str(tmp_path), use_cpu=True, top_p=1.0)
    with pytest.raises(ConfigurationError, match=r"^top_p: is new in TRL"):
        DopdConfig(str(tmp_path), use_cpu=True, top_p=0.9)


def test_epochs_have_a_key_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match=r"^trl\.num_train_epochs: has a key .* training\.num_train_epochs"):
        check(TrainConfig(trl={"num_train_epochs": 2}))
    check(TrainConfig(training=LoopSettings(num_train_epochs=2)))


def test_the_command_refuses_before_anything_is_loaded(tmp_path: Path) -> None:
    config = {"output_dir": "run", "data": {"train": "nowhere"}, "model": {"student": "nowhere"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config, "trl": {"save_only_model": True}}))
    done = dopd_vl("train", "--config", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"trl.save_only_model: {REFUSED['save_only_model']}")
    assert not (tmp_path / "run").exists()


def test_tools_are_refused() -> None:
    with pytest.raises(UserError, match=r"^tools: "):
        DopdTrainer("nowhere", args=DopdConfig("x", use_cpu=True), tools=[print])


@pytest.mark.parametrize(
    ("chosen_by", "best"),
    [
        ({}, 2),
        ({"metric_for_best_model": "tokens"}, 3),
        ({"metric_for_best_model": "tokens", "greater_is_better": False}, 1),
    ],
)
def test_the_best_student_is_loaded_at_the_end_by_its_accuracy(
    make_trainer: MakeTrainer,
    text_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    chosen_by: dict[str, Any],
    best: int,
) -> None:
    trainer = make_trainer(
        "text",
        max_steps=3,
        load_best_model_at_end=True,
        eval_dataset=load_examples(str(text_data)),
        **dict.fromkeys(("save_strategy", "eval_strategy"), "steps"),
        **dict.fromkeys(("save_steps", "eval_steps"), 1),
        **chosen_by,
    )
    assert trainer.args.metric_for_best_model == chosen_by.get("metric_for_best_model", "accuracy")
    accuracies = {1: 0.1, 2: 0.9, 3: 0.2}

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        step = trainer.state.global_step
        return {"eval_accuracy": accuracies[step], "eval_tokens": float(step)}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{best}")
    saved = load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors")
    weights = trainer.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in saved.items())


def test_the_order_of_the_data_is_kept_and_read_by_workers_where_that_is_asked(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        "text", num_generations=2, max_steps=2, shuffle_dataset=False, dataloader_num_workers=1, disable_dropout=True
    )
    step, seen = trainer._generate_and_score_completions, []

    def remember(inputs: list[dict[str, Any]]) -> Any:
        seen.append([example["id"] for example in inputs])
        return step(inputs)

    trainer._generate_and_score_completions = remember
    trainer.train()
    ids = trainer.train_dataset["id"]
    assert seen == [[ids[0], ids[0], ids[1], ids[1]], [ids[2], ids[2], ids[3], ids[3]]]
