"""Every field of TRL's configuration is meant as TRL means it, or refused by name with the reason."""

import dataclasses
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

OTHERS: dict[str, Any] = {
    "label_names": ["labels"],
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
    with pytest.raises(ConfigurationError, match=rf"^{name}\.{key}: "):
        DopdConfig(str(tmp_path), use_cpu=True, **{name: f'{{"{key}": true}}'})


def test_a_field_that_a_later_trl_brings_is_refused_until_it_is_in_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trl_fields, "MEANT", MEANT - {"top_p"})
    DopdConfig(str(tmp_path), use_cpu=True, top_p=1.0)
    with pytest.raises(ConfigurationError, match=r"^top_p: is new in TRL"):
        DopdConfig(str(tmp_path), use_cpu=True, top_p=0.9)


def test_epochs_beside_steps_are_refused_and_alone_are_taken() -> None:
    with pytest.raises(ConfigurationError, match=r"^trl\.num_train_epochs: training\.max_steps=200 "):
        check(TrainConfig(trl={"num_train_epochs": 2}))
    check(TrainConfig(trl={"num_train_epochs": 2}, training=LoopSettings(max_steps=-1)))


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


def test_the_best_student_is_loaded_at_the_end_by_its_accuracy(
    make_trainer: MakeTrainer, text_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = make_trainer(
        "text",
        max_steps=3,
        load_best_model_at_end=True,
        eval_dataset=load_examples(str(text_data)),
        **dict.fromkeys(("save_strategy", "eval_strategy"), "steps"),
        **dict.fromkeys(("save_steps", "eval_steps"), 1),
    )
    assert trainer.args.metric_for_best_model == "accuracy"
    accuracies = {1: 0.1, 2: 0.9, 3: 0.2}
    monkeypatch.setattr(trainer, "evaluate", lambda *a, **k: {"eval_accuracy": accuracies[trainer.state.global_step]})
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
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
