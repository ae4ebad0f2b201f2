"""What is refused before a run begins, by train, plan and study alike, and what is said where there is no verdict."""

import dataclasses
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console

from dopd_vl.common.configuration import as_yaml, read_config
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.evaluation.code import ALLOW_CODE
from dopd_vl.evaluation.verifiers import VERIFIERS
from dopd_vl.models import load_config
from dopd_vl.objectives import OBJECTIVES, Opd
from dopd_vl.train_config import (
    DataSettings,
    LoopSettings,
    LoraSettings,
    ObjectiveSettings,
    PrivilegeSettings,
    TrainConfig,
    TrainerSettings,
    in_todays_keys,
)
from dopd_vl.training.arguments import DopdConfig, trainer_arguments
from dopd_vl.training.checks import check, check_requirements
from dopd_vl.training.data_checks import say_what_is_not_scored
from dopd_vl.training.metrics import verdict_on
from privileged.schema import TASKS

DATA = Dataset.from_dict({"task": ["code", "math", "code", "open"]})
TESTS = '{"inputs": [""], "outputs": ["1"]}'


def said(dataset: Dataset) -> list[str]:
    console = Console(file=io.StringIO(), width=400)
    say_what_is_not_scored(dataset, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_every_task_of_the_data_has_a_verifier() -> None:
    assert set(VERIFIERS) == set(TASKS)


def test_unscored_tasks_are_said_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    lines = said(DATA)
    assert len(lines) == 2
    assert any("'code' are not scored" in line and "allow_code: true" in line for line in lines)
    assert said(DATA.select([1])) == []
    monkeypatch.setenv(ALLOW_CODE, "1")
    assert ["'open'" in line for line in said(DATA)] == [True]


def test_a_verdict_is_none_until_programs_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    example, response = {"task": "code", "answer": TESTS}, "```python\nprint(1)\n```"
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    assert verdict_on(response, example).right is None
    monkeypatch.setenv(ALLOW_CODE, "1")
    assert verdict_on(response, example).right is True
    assert verdict_on("a", {"task": "open", "answer": "a"}).right is None


@pytest.mark.parametrize("name", ["uni-opd", "sdpo"])
def test_objectives_that_need_a_verdict_refuse_tasks_without_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    objective = OBJECTIVES[name]()
    for task in ("code", "open"):
        data = Dataset.from_dict({"task": ["math", task]})
        with pytest.raises(ValueError, match=f"needs a verdict on every rollout; task '{task}'"):
            check_requirements(objective, 4, False, data)
    monkeypatch.setenv(ALLOW_CODE, "1")
    check_requirements(objective, 4, False, DATA.select([0, 1]))
    for view in ("masked", "half_resolution", "evidence_crop"):
        with pytest.raises(ValueError, match=rf"is about images \(view '{view}'\)"):
            check_requirements(Opd(teacher_view="privileged", evidence_gate=view), 1, False, None)
    with pytest.raises(ValueError, match=r"4 sequences a rollout.*num_generations=6 must be a multiple of it"):
        check_requirements(OBJECTIVES["dapd"](), 6, False, None)
    check_requirements(OBJECTIVES["dopd"](), 4, False, DATA)
    with pytest.raises(ValueError, match=r"training\.task_reward=0\.5 compares rollouts of one prompt"):
        check_requirements(OBJECTIVES["dopd"](), 1, False, None, task_reward=0.5)


def test_weights_that_are_pickles_are_not_loaded(nano_models: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(nano_models / "text-student", model)
    assert load_config(str(model), "model.student").model_type == "qwen3"
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.student: .* holds no \.safetensors weights"):
        load_config(str(model), "model.student")


OWN = [f.name for f in dataclasses.fields(TrainerSettings)]


@pytest.mark.parametrize("name", [*OWN, "copy_variant", "max_prompt_length", "output_dir"])
def test_a_setting_with_a_key_of_its_own_is_refused_under_trl_with_that_key(name: str) -> None:
    section = {"copy_variant": "privilege.", "max_prompt_length": "data.", "output_dir": ""}.get(name, "training.")
    with pytest.raises(ConfigurationError, match=rf"trl\.{name}: has a key of its own, {section}{name};"):
        check(TrainConfig(trl={name: 1}))


def test_every_key_of_training_and_privilege_is_an_argument_of_the_trainer_with_the_same_default() -> None:
    def defaults(settings: type, *but: str) -> dict[str, Any]:
        found = {f.name: f for f in dataclasses.fields(settings) if f.name not in but}
        return {
            name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            for name, f in found.items()
        }

    of_run_folder = ("early_stopping_patience", "save_dtype", "push_to_hub")
    keys = {**defaults(LoopSettings, *of_run_folder), **defaults(PrivilegeSettings), "seed": TrainConfig.seed}
    keys |= {name: getattr(DataSettings, name) for name in ("max_prompt_length", "min_pixels", "max_pixels")}
    arguments = defaults(DopdConfig)
    assert {name: arguments[name] for name in keys} == keys
    config = TrainConfig(training=LoopSettings(scoring_batch_size=3), privilege=PrivilegeSettings("hints", "box_label"))
    made = trainer_arguments(config)
    assert (made.scoring_batch_size, made.teacher_variant, made.copy_variant) == (3, "hints", "box_label")
    assert made.student_variant == "none"


def test_the_students_variant_needs_the_copys_beside_it_for_the_name_has_meant_the_copys(tmp_path: Path) -> None:
    def read(text: str, *options: str) -> TrainConfig:
        (tmp_path / "run.yaml").write_text(text)
        return read_config(TrainConfig, ["--config", str(tmp_path / "run.yaml"), *options], "test")

    for old in ("hints", "none", "default"):
        with pytest.raises(ConfigurationError, match=r"privilege\.student_variant: .*copy_variant"):
            read(f"privilege: {{teacher_variant: hints, student_variant: {old}}}")
        with pytest.raises(ConfigurationError, match=r"privilege\.student_variant: .*copy_variant"):
            read("seed: 1", "--privilege.student_variant", old)
        with pytest.raises(ValueError, match=r"student_variant: .*copy_variant"):
            DopdConfig("x", use_cpu=True, student_variant=old)
    both = read("privilege: {copy_variant: hints}", "--privilege.student_variant", "default").privilege
    assert (both.copy_variant, both.student_variant) == ("hints", "default")
    config = read("privilege: {copy_variant: hints}")
    assert (config.privilege.copy_variant, config.privilege.student_variant) == ("hints", "none")
    assert read(as_yaml(config)) == config


@pytest.mark.parametrize(
    ("section", "old", "new", "value"),
    [("privilege", "learner_variant", "student_variant", "none"), ("data", "max_image_pixels", "max_pixels", "4096")],
)
def test_a_renamed_key_is_refused_with_its_new_name(
    section: str, old: str, new: str, value: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(f"{section}:\n  {old}: {value}\n")
    with pytest.raises(ConfigurationError, match=rf"old\.yaml:2: key '{section}\.{old}' is called {new} now"):
        read_config(TrainConfig, ["--config", str(file)], "test")
    with pytest.raises(ConfigurationError, match=rf"option --{section}\.{old} is called {new} now"):
        read_config(TrainConfig, [f"--{section}.{old}={value}"], "test")


def test_a_configuration_of_before_the_keys_were_renamed_is_told_in_todays() -> None:
    today = dataclasses.asdict(TrainConfig(training=LoopSettings(logits_chunk_size=7), trl={"top_k": 1}))
    today["privilege"] = {"teacher_variant": "hints", "copy_variant": "box_label", "student_variant": "default"}
    old: dict[str, Any] = {**today, "trl": {"logits_chunk_size": 7, "top_k": 1}}
    old["privilege"] = {"teacher_variant": "hints", "student_variant": "box_label", "learner_variant": "default"}
    had = ("num_generations", "eval_variants")
    old["training"] = {name: value for name, value in today["training"].items() if name in had or name not in OWN}
    old["model"] = {
        name: value for name, value in today["model"].items() if name not in ("freeze", "server", "teachers")
    }
    old["model"] = {key: value for key, value in today["model"].items() if key not in ("freeze", "server", "teachers")}
    old["data"] = {**today["data"], "max_image_pixels": 4096}
    del old["data"]["max_pixels"]
    today["data"]["max_pixels"] = 4096
    assert in_todays_keys(old) == in_todays_keys(today) == today
    assert "learner_variant" in old["privilege"]
    assert "max_image_pixels" in old["data"]


@pytest.mark.parametrize(("lora", "before"), [(None, False), ({"dropout": 0.0}, False), ({"dropout": 0.1}, True)])
def test_a_run_of_before_dropout_had_a_key_drew_with_what_dropout_it_had(lora: Any, before: bool) -> None:
    saved = dataclasses.asdict(TrainConfig())
    saved["model"]["lora"] = lora
    del saved["training"]["rollout_dropout"]
    assert in_todays_keys(saved)["training"]["rollout_dropout"] is before


def test_zero_3_refuses_a_copy_with_other_weights_than_the_students() -> None:
    config = TrainConfig(objective=ObjectiveSettings("dopd", {"student_policy": "start"}))
    check(config, zero_stage=2)
    with pytest.raises(UserError, match="ZeRO-3"):
        check(config, zero_stage=3)
    config.model.lora = LoraSettings()
    check(config, zero_stage=3)


def test_a_plan_without_fields_of_trls_does_not_wait_for_its_import() -> None:
    code = (
        "import sys; from dopd_vl.planning.build import workload_of; from dopd_vl.planning.config import PlanConfig;"
        "workload_of(PlanConfig()); print('trl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
