"""A run that would train nothing is refused with the numbers; a step that has nothing to learn from is passed over."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from dopd_vl import DopdConfig, DopdTrainer
from tests.commands import dopd_vl


def command(models: Path, data: Path, output: Path, *options: object, world: str = "text") -> list[object]:
    """`dopd-vl train` on two rollouts of one prompt a step."""
    return [
        *("train", "--model.student", models / f"{world}-student", "--model.teacher", models / f"{world}-teacher"),
        *("--data.train", data, "--output_dir", output, "--training.max_steps", 2),
        *("--training.per_device_train_batch_size", 2, "--training.num_generations", 2),
        *("--training.max_completion_length", 5, "--training.gradient_checkpointing", "false", *options),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.max_steps", 0], "training.max_steps=0 trains nothing"),
        (
            ["--training.max_steps", -1, "--trl.num_train_epochs", 0],
            "num_train_epochs=0 with max_steps=-1 makes no step",
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
    done = dopd_vl(*command(nano_models, text_data, tmp_path / "run", *options))
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps=0 trains nothing"),
        (
            {"num_train_epochs": 0, "per_device_train_batch_size": 1},
            "num_train_epochs=0 with max_steps=-1 makes no step",
        ),
        ({"per_device_train_batch_size": 4}, "train_dataset: its 3 examples make no step, which takes 4"),
    ],
)
def test_the_trainer_refuses_it_too(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DopdTrainer(
            "no model is looked for",
            args=DopdConfig(str(tmp_path), use_cpu=True, report_to="none", **settings),
            train_dataset=Dataset.from_dict({"id": ["a", "b", "c"]}),
        )
