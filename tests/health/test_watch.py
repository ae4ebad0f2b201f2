"""The watch over a run as it trains: what it says, keeps and stops, and what of that a run taken up again repeats."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl, write_jsonl
from dopd_vl.train_config import (
    DataSettings,
    HealthSettings,
    LoopSettings,
    ModelSettings,
    ObjectiveSettings,
    TrainConfig,
)
from dopd_vl.training.run import RunResult, run_training


def config(models: Path, data: Path, folder: Path, on_alarm: Any = "say", **changes: Any) -> TrainConfig:
    """Four steps of an untrained student, whose responses all end at the limit: an alarm of kind "length" at step 2."""
    return TrainConfig(
        output_dir=str(folder),
        model=ModelSettings(student=str(models / "text-student"), teacher=str(models / "text-teacher")),
        data=DataSettings(train=str(data)),
        objective=ObjectiveSettings("opd"),
        training=LoopSettings(
            max_steps=4,
            learning_rate=1e-3,
            per_device_train_batch_size=4,
            num_generations=1,
            max_completion_length=4,
            gradient_checkpointing=False,
            save_steps=changes.pop("save_steps", 4),
        ),
        health=HealthSettings(on_alarm=on_alarm, window=changes.pop("window", 2), clipped_share=0.6),
        **changes,
    )


def run(settings: TrainConfig) -> tuple[RunResult, str]:
    output = io.StringIO()
    result = run_training(settings, console=Console(file=output, width=80))
    return result, output.getvalue()


def whole_checkpoints(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("checkpoint-*/complete.json"))


@pytest.fixture(scope="module")
def finished(nano_models: Path, text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, str]:
    return run(config(nano_models, text_data, tmp_path_factory.mktemp("runs") / "whole"))


def test_an_alarm_is_one_line_once_and_the_run_goes_on(finished: tuple[RunResult, str]) -> None:
    result, output = finished
    lines = [line for line in output.splitlines() if "alarm" in line]
    assert len(lines) == 1
    assert lines[0].startswith("alarm at step 2, length: ")
    assert "are cut at training.max_completion_length (4 tokens) from the start" in lines[0]
    (kept,) = read_jsonl(result.folder / "alarms.jsonl")
    assert (kept["kind"], kept["step"]) == ("length", 2)
    assert kept["message"] in lines[0]
    assert [row["step"] for row in result.metrics if "loss" in row] == [1, 2, 3, 4]
    assert not (result.folder / "stopped.json").exists()
    assert result.student.is_dir()


def test_stop_ends_with_a_whole_checkpoint_and_resume_goes_on_to_the_same_end(
    finished: tuple[RunResult, str], nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"stopped at step 2 by health\.on_alarm \(length\): .* --resume true goes on"):
        run(config(nano_models, text_data, folder, "stop"))
    assert whole_checkpoints(folder) == ["checkpoint-2"]
    stopped = json.loads((folder / "stopped.json").read_text())
    assert (stopped["kind"], stopped["step"]) == ("length", 2)
    assert not (folder / "student").exists()

    result, output = run(config(nano_models, text_data, folder, "stop", resume=True))
    assert "alarm" not in output
    assert not (folder / "stopped.json").exists()
    whole = finished[0].folder
    for name in ("metrics.jsonl", "alarms.jsonl", "rollouts.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (load_file(path / "student" / "model.safetensors") for path in (folder, whole))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert [row["step"] for row in result.metrics if "loss" in row] == [1, 2, 3, 4]


def test_an_alarm_after_the_checkpoint_that_a_run_goes_on_from_is_said_again(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    # A run killed after step 3, with a checkpoint of step 2 and an alarm that takes three steps.
    folder = tmp_path / "run"
    settings = config(nano_models, text_data, folder, save_steps=2, window=3)
    settings.training.save_total_limit = 4
    run(settings)
    whole = {name: (folder / name).read_bytes() for name in ("alarms.jsonl", "metrics.jsonl")}
    assert [row["step"] for row in read_jsonl(folder / "alarms.jsonl")] == [3]
    (folder / "checkpoint-4" / "complete.json").unlink()
    write_jsonl(folder / "metrics.jsonl", [r for r in read_jsonl(folder / "metrics.jsonl") if r["step"] <= 3])
    settings.resume = True
    (folder / "config.yaml").write_text(as_yaml(settings))
    _, output = run(settings)
    # It needs rows from before the checkpoint.
    assert output.count("alarm at step 3, length") == 1
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def test_ignore_says_and_keeps_nothing(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    result, output = run(config(nano_models, text_data, tmp_path / "run", "ignore"))
    assert "alarm" not in output
    assert not (result.folder / "alarms.jsonl").exists()


def test_a_run_that_goes_nan_is_stopped_and_spoils_no_checkpoint(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    # A teacher whose weights are finite and whose logits are not: the first loss is NaN, and with it the whole student.
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for file in (nano_models / "text-teacher").iterdir():
        (teacher / file.name).write_bytes(file.read_bytes())
    tensors = load_file(teacher / "model.safetensors")
    tensors["model.norm.weight"].fill_(3e38)
    save_file(tensors, teacher / "model.safetensors", {"format": "pt"})
    settings = config(nano_models, text_data, tmp_path / "run", "stop", save_steps=1)
    settings.model.teacher = str(teacher)
    with pytest.raises(UserError, match=r"stopped at step 1 by health\.on_alarm \(non_finite\): .*grad_norm is nan"):
        run(settings)
    assert json.loads((tmp_path / "run" / "stopped.json").read_text())["kind"] == "non_finite"
    assert list((tmp_path / "run").glob("checkpoint-*")) == []
    assert not (tmp_path / "run" / "student").exists()


def test_two_processes_stop_at_the_same_step(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    settings = config(nano_models, text_data, tmp_path / "run", "stop")
    (tmp_path / "run.yaml").write_text(as_yaml(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "dopd_vl.cli", "train", "--config", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert result.stdout.count("alarm at step 2, length") == 1, result.stderr[-3000:]
    assert "stopped at step 2 by health.on_alarm (length)" in result.stderr
    assert whole_checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert json.loads((tmp_path / "run" / "stopped.json").read_text())["step"] == 2
