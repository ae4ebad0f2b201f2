"""How long a run is: by steps or by epochs, and that it says so; that it ends where accuracy stands still."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from dopd_vl.cli import main
from dopd_vl.common.files import read_json, read_jsonl
from dopd_vl.run_folder.checkpoints import read_mark
from tests.commands import dopd_vl


def options_of(models: Path, data: Path, folder: Path) -> list[object]:
    return [
        *("--output_dir", folder, "--data.train", data),
        *("--model.student", models / "text-student", "--model.teacher", models / "text-teacher"),
        *("--training.per_device_train_batch_size", 4, "--training.max_completion_length", 4),
        *("--training.eval_steps", 1, "--training.save_steps", 10),
    ]


@pytest.mark.parametrize("epochs", [1, 1.5])
def test_epochs_make_as_many_steps_as_the_run_says(
    nano_models: Path, text_data: Path, tmp_path: Path, epochs: float
) -> None:
    """24 examples, and 2 * 4 rollouts of 4 prompts a step."""
    options = [*options_of(nano_models, text_data, tmp_path / "run"), "--training.num_train_epochs", epochs]
    more = ["--training.gradient_accumulation_steps", 2, "--training.num_generations", 2]
    result = dopd_vl("train", *options, *more)
    assert result.returncode == 0, result.stderr
    steps = int(6 * epochs)
    assert f"{steps} steps by num_train_epochs, {epochs} passes over 24 examples" in result.stdout
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == steps


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--training.num_train_epochs", "2", "--training.max_steps", "30"), "training.max_steps=30: give one of them"),
        (("--training.num_train_epochs", "0"), "training.num_train_epochs=0.0 must be above 0"),
        (("--training.early_stopping_patience", "0"), "training.early_stopping_patience=0 must be at least 1"),
        (("--training.early_stopping_patience", "2"), "training.early_stopping_patience: needs data.eval"),
    ],
)
def test_lengths_that_contradict_are_refused(
    options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_run_without_gain_ends_early_and_stays_ended(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    """At a rate of 0 no evaluation is better than the first. The weights are saved in bf16, as asked."""
    folder = tmp_path / "run"
    options = [*options_of(nano_models, text_data, folder), "--data.eval", text_data, "--data.eval_size", 4]
    options += ["--training.learning_rate", 0, "--training.early_stopping_patience", 2]
    options += ["--training.save_dtype", "bfloat16"]
    for more in ([], ["--resume", "true"]):
        result = dopd_vl("train", *options, *more)
        assert result.returncode == 0, result.stderr
        assert "stopped early at step 2: no higher eval_accuracy than 0 in 2 evaluations" in result.stdout
        assert read_jsonl(folder / "metrics.jsonl")[-1]["step"] == 2
    for name in ("best", "student"):
        assert read_mark(folder / name, "dopd.json") is not None
        kinds = {str(tensor.dtype) for tensor in load_file(folder / name / "model.safetensors").values()}
        assert kinds == {"torch.bfloat16"}
        described = read_json(folder / name / "config.json")
        assert described is not None
        assert described["dtype"] == "bfloat16"
    kept = load_file(folder / "checkpoint-2" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in kept.values()} == {"torch.float32"}
