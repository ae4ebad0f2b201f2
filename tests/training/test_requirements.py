"""What training says, and refuses, where responses get no verdict."""

import io
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from rich.console import Console

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation.code import ALLOW_CODE
from dopd_vl.evaluation.verifiers import VERIFIERS
from dopd_vl.models import load_config
from dopd_vl.objectives import OBJECTIVES
from dopd_vl.training.checks import check_requirements, say_what_is_not_scored
from dopd_vl.training.metrics import is_correct
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
    assert is_correct(example, response) is None
    monkeypatch.setenv(ALLOW_CODE, "1")
    assert is_correct(example, response) is True
    assert is_correct({"task": "open", "answer": "a"}, "a") is None


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
    check_requirements(OBJECTIVES["dopd"](), 4, False, DATA)


def test_weights_that_are_pickles_are_not_loaded(nano_models: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(nano_models / "text-student", model)
    assert load_config(str(model), "model.student").model_type == "qwen3"
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.student: .* holds no \.safetensors weights"):
        load_config(str(model), "model.student")
