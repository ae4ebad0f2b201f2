"""A run that would train nothing is refused with the numbers; a step that has nothing to learn from is passed over."""

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.common.files import read_jsonl
from dopd_vl.objectives import OBJECTIVES
from tests.commands import dopd_vl
from tests.conftest import MakeTrainer


def command(models: Path, data: Path, output: Path, *options: object, world: str = "text") -> list[object]:
    """`dopd-vl train` on two rollouts of one prompt a step."""
    return [
        *("train", "--model.student", models / f"{world}-student", "--model.teacher", models / f"{world}-teacher"),
        *("--data.train", data, "--output_dir", output, "--training.max_steps", 2),
        *("--training.per_device_train_batch_size", 2, "--training.num_generations", 2),
        *("--training.max_completion_length", 5, "--training.gradient_checkpointing", "false", *options),
    ]


def refuses(arguments: list[object], message: str) -> None:
    """The command ends with one line, and the message is in it."""
    done = dopd_vl(*arguments)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.max_steps", 0], "training.max_steps=0 trains nothing"),
        (
            ["--training.num_train_epochs", 0],
            "training.num_train_epochs=0.0 must be above 0",
        ),
        (
            ["--training.per_device_train_batch_size", 50],
            "data.train: its 24 examples make no step, which takes 25 (per_device_train_batch_size=50 * "
            "gradient_accumulation_steps=1 * 1 process(es) / num_generations=2)",
        ),
        (["--training.gradient_accumulation_steps", 25], "data.train: its 24 examples make no step, which takes 25"),
        (["--training.temperature", 0], "training.temperature=0.0 must be above 0"),
        (["--training.max_completion_length", 0], "training.max_completion_length=0 must be at least 1"),
    ],
)
def test_a_run_that_trains_nothing_is_refused_before_a_model_is_loaded(
    nano_models: Path, text_data: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    refuses(command(nano_models, text_data, tmp_path / "run", *options), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps=0 trains nothing"),
        (
            {"num_train_epochs": -1},
            "num_train_epochs=-1 must be above 0",
        ),
        (
            {"per_device_train_batch_size": 4, "num_generations": 1},
            "train_dataset: its 3 examples make no step, which takes 4",
        ),
    ],
)
def test_the_trainer_refuses_it_too(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DopdTrainer(
            "no model is looked for",
            args=DopdConfig(str(tmp_path), use_cpu=True, report_to="none", **settings),
            train_dataset=Dataset.from_dict({"id": ["a", "b", "c"]}),
        )


def test_a_step_whose_only_prompt_cannot_be_shown_is_a_step_without_a_loss(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    """And a run that is taken up again behind it does not meet it again."""
    few = ["--data.max_prompt_length", 60, "--training.max_steps", 6, "--training.save_steps", 3]
    words = command(nano_models, text_data, tmp_path / "run", *few)
    done = dopd_vl(*words)
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    empty = [row for row in rows if row["usable_rollouts"] == 0]
    assert 0 < len(empty) < 6
    assert all(row["loss"] == row["grad_norm"] == 0 for row in empty)
    assert all(row["loss"] != 0 for row in rows if row["usable_rollouts"] == 1)
    refused = read_jsonl(tmp_path / "run" / "refused.jsonl")
    assert [row["step"] for row in refused] == [row["step"] for row in empty]
    assert all("more than max_prompt_length=60" in row["reason"] for row in refused)

    weights = (tmp_path / "run/student/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoint-6")
    shutil.rmtree(tmp_path / "run/student")
    again = dopd_vl(*words, "--resume", "true")
    assert again.returncode == 0, again.stderr
    assert read_jsonl(tmp_path / "run" / "refused.jsonl") == refused
    assert (tmp_path / "run/student/model.safetensors").read_bytes() == weights


def test_data_without_a_usable_example_are_no_success(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    options = ["--data.max_prompt_length", 1, "--training.max_steps", 99, "--training.per_device_train_batch_size", 16]
    done = dopd_vl(*command(nano_models, text_data, tmp_path / "run", *options))
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: none of the examples of 3 steps can be learned from; the first: example 'nano-text")
    assert line.endswith("tokens, more than max_prompt_length=1")
    assert len({row["id"] for row in read_jsonl(tmp_path / "run" / "refused.jsonl")}) == 24
    assert not (tmp_path / "run" / "student").exists()


def test_a_limit_that_was_set_too_low_can_be_raised_on_resume(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    """A run that learned of some examples goes on with it; one that learned of none begins anew."""
    steps = ["--training.max_steps", 6, "--training.save_steps", 1, "--training.save_total_limit", 0]

    def train(folder: str, limit: int, *options: object) -> subprocess.CompletedProcess[str]:
        limits = ["--data.max_prompt_length", limit]
        return dopd_vl(*command(nano_models, text_data, tmp_path / folder, *steps, *limits, *options))

    assert train("some", 60).returncode == 0
    before = read_jsonl(tmp_path / "some/refused.jsonl")
    for name in ("student", "checkpoint-6", "checkpoint-5", "checkpoint-4", "checkpoint-3", "checkpoint-2"):
        shutil.rmtree(tmp_path / "some" / name)
    done = train("some", 400, "--resume", "true")
    assert done.returncode == 0, done.stderr
    assert "some: data.max_prompt_length was 60 and is 400 now; other examples are passed over" in done.stdout
    assert read_jsonl(tmp_path / "some/refused.jsonl") == [row for row in before if row["step"] == 1]
    assert "max_prompt_length: 400" in (tmp_path / "some/config.yaml").read_text()

    assert "learned from" in train("none", 1).stderr
    assert (tmp_path / "none/checkpoint-6").exists()
    done = train("none", 400, "--resume", "true")
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_jsonl(tmp_path / "none/metrics.jsonl") if "loss" in row]
    assert [(row["step"], row["usable_rollouts"]) for row in rows] == [(step, 1) for step in range(1, 7)]
    assert not (tmp_path / "none/refused.jsonl").exists() or read_jsonl(tmp_path / "none/refused.jsonl") == []


def test_a_run_that_diverged_is_evaluated_to_its_end(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    options = ["--training.learning_rate", 1e38, "--training.eval_steps", 1, "--data.eval", text_data]
    done = dopd_vl(*command(nano_models, text_data, tmp_path / "run", *options, "--data.eval_size", 2))
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "eval_entropy" in row]
    assert [(row["step"], math.isnan(row["eval_entropy"])) for row in rows] == [(0, False), (1, True), (2, True)]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_passes_over_a_step_without_a_usable_example(name: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        "vision", OBJECTIVES[name](), num_generations=4, max_steps=2, shuffle_dataset=False, logging_steps=1
    )
    bad = {"bytes": b"no image", "path": None}
    features = trainer.train_dataset.features
    rows = [{**row, "images": [bad]} if n == 0 else row for n, row in enumerate(trainer.train_dataset)]
    trainer.train_dataset = Dataset.from_list(rows, features=features)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    moved = []

    class Moved(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = trainer.model.state_dict()
            moved.append(any(not torch.equal(before[key], now[key]) for key in before))

    trainer.add_callback(Moved())
    trainer.train()
    first, second = [row for row in trainer.state.log_history if "usable_rollouts" in row]
    assert (first["usable_rollouts"], first["loss"], first["grad_norm"]) == (0, 0, 0)
    assert second["usable_rollouts"] == 1
    assert moved == [False, second["grad_norm"] > 0]
    assert "image" in trainer.refusals[0].reason
