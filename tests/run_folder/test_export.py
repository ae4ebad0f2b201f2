"""`dopd-vl export`: the model that the adapters and their base make, in bf16, whole or not there at all."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from dopd_vl.cli import main
from dopd_vl.evaluation.run import load_model
from dopd_vl.run_folder import export
from dopd_vl.run_folder.checkpoints import read_mark
from tests.commands import dopd_vl


@pytest.fixture(scope="module")
def student(nano_models: Path, vision_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with adapters, at a rate that moves them far."""
    folder = tmp_path_factory.mktemp("run") / "run"
    result = dopd_vl(
        *("train", "--output_dir", folder, "--data.train", vision_data, "--training.max_steps", 2),
        *("--model.student", nano_models / "vision-student", "--model.teacher", nano_models / "vision-teacher"),
        *("--model.lora.r", 4, "--training.learning_rate", 0.02, "--training.per_device_train_batch_size", 4),
        *("--training.max_completion_length", 4),
    )
    assert result.returncode == 0, result.stderr
    return folder / "student"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(10, 30)[None]).logits.float()
    return found


def test_the_merged_model_is_that_of_the_adapters(student: Path, nano_models: Path, tmp_path: Path) -> None:
    result = dopd_vl("export", "--model", student, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert f"exported: {tmp_path / 'out'}" in result.stdout

    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert merged.dtype == torch.bfloat16
    AutoProcessor.from_pretrained(tmp_path / "out")
    expected = logits(load_model(str(student), "float32")[0])
    untrained = logits(load_model(str(nano_models / "vision-student"), "float32")[0])
    far = (expected - untrained).abs().max()
    assert (logits(merged) - expected).abs().max() < far / 5

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "dopd.json"} <= names
    assert not any(name.startswith("adapter") for name in names)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "Its weights are bfloat16 here, with its adapters merged into the base model." in card
    facts = read_mark(tmp_path / "out", "dopd.json")
    assert facts is not None
    assert (facts["step"], facts["dtype"], facts["merged"]) == (2, "bfloat16", True)


def test_an_export_is_whole_or_not_there(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "mark_whole", full)
    assert main(["export", "--model", str(student), "--output", str(tmp_path / "out")]) == 2
    assert "output: cannot write to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_in_one_line(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(student, tmp_path / "damaged"))
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for options, told in (
        ([], "model: no student given"),
        (["--model", str(tmp_path / "none")], "model: no folder "),
        (["--model", str(damaged)], "is not as the run saved it"),
        (["--model", str(student), "--output", str(tmp_path)], "is there already; give another folder"),
    ):
        assert main(["export", *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
