"""Whole runs from their configuration: what they leave, and that they can be stopped and taken up again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.common.run_layout import COMPLETE_FILE
from dopd_vl.run_folder.checkpoints import whole_checkpoints
from dopd_vl.train_config import DataSettings, LoopSettings, ModelSettings, ObjectiveSettings, TrainConfig
from dopd_vl.training.run import RunResult, run_training


def config(models: Path, data: Path, folder: Path, world: str = "vision", **changes: Any) -> TrainConfig:
    loop = {
        "max_steps": 4,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 5,
        "gradient_checkpointing": False,
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 4,
        "eval_variants": ["none", "default"] if changes.pop("both", False) else ["none"],
        **changes.pop("training", {}),
    }
    return TrainConfig(
        output_dir=str(folder),
        model=ModelSettings(student=str(models / f"{world}-student"), teacher=str(models / f"{world}-teacher")),
        data=DataSettings(train=str(data), eval=str(data), eval_size=4),
        training=LoopSettings(**loop),
        **changes,
    )


def run(settings: TrainConfig) -> RunResult:
    return run_training(settings, console=Console(quiet=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def images_of(folder: Path, steps: range) -> set[str]:
    rows = [row for row in read_jsonl(folder / "rollouts.jsonl") if row["step"] in steps]
    return {name for row in rows for seen in (row, *row.get("views", [])) for name in seen.get("images", [])}


@pytest.fixture(scope="module")
def finished(nano_models: Path, vision_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(config(nano_models, vision_data, tmp_path_factory.mktemp("runs") / "whole"))


def test_a_run_folder_holds_config_metrics_rollouts_best_and_student(finished: RunResult) -> None:
    folder = finished.folder
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["max_steps"] == 4
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [0, 2, 4]
    names = ("LH", "LL", "HT", "HS")
    for row in rows:
        if "loss" in row:
            assert sum(row[f"token_share/{name}"] for name in names) == pytest.approx(1.0)
            assert sum(row[f"loss_share/{name}"] for name in names) == pytest.approx(1.0)
            assert {"entropy", "gap/threshold", "completions/clipped_ratio", "completions/mean_length"} <= set(row)
    assert {row["step"] for row in read_jsonl(folder / "rollouts.jsonl")} == {1, 2, 3, 4}
    assert (folder / "best" / "model.safetensors").is_file()
    assert json.loads((folder / "best" / "dopd.json").read_text())["step"] == 0
    assert (finished.student / "processor_config.json").is_file()
    assert [p.name for p in whole_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]


def test_a_run_taken_up_again_ends_as_an_uninterrupted_one(
    finished: RunResult, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    # As a run leaves its folder when it is killed after step 3: a checkpoint of step 2, metrics of step 3, and the
    # beginnings of a checkpoint that never became whole.
    folder = tmp_path / "killed"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "student")
    (folder / "checkpoint-4" / COMPLETE_FILE).unlink()
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"cut short")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        lines = [line for line in (folder / name).read_text().splitlines() if json.loads(line)["step"] <= 3]
        (folder / name).write_text("\n".join(lines) + '\n{"step": 3, "cut sho')
    images_of_last = images_of(finished.folder, range(4, 5)) - images_of(finished.folder, range(1, 4))
    assert images_of_last
    for name in images_of_last:
        (folder / "images" / name).unlink()
    settings = config(nano_models, vision_data, folder, resume=True)
    (folder / "config.yaml").write_text(as_yaml(settings))
    again = run(settings)

    whole, resumed = weights(finished.student), weights(again.student)
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert read_jsonl(folder / name) == read_jsonl(finished.folder / name), name
    images = {path.name for path in (folder / "images").iterdir()}
    assert images == {path.name for path in (finished.folder / "images").iterdir()} == images_of(folder, range(1, 5))


def test_a_folder_with_a_run_is_not_written_over(finished: RunResult, nano_models: Path, vision_data: Path) -> None:
    with pytest.raises(UserError, match="already holds a run; give --resume true"):
        run(config(nano_models, vision_data, finished.folder))


def test_resume_with_another_setting_names_it(finished: RunResult, nano_models: Path, vision_data: Path) -> None:
    changed = config(nano_models, vision_data, finished.folder, training={"learning_rate": 0.5}, resume=True)
    with pytest.raises(UserError, match=r"resume: training\.learning_rate was 0\.001 .* is 0\.5 now"):
        run(changed)


def test_resume_with_other_data_is_refused(
    finished: RunResult, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    from tests.conftest import prepare_nano

    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    data = tmp_path / "data"
    shutil.copytree(vision_data, data)
    settings = config(nano_models, data, folder, resume=True)
    (folder / "config.yaml").write_text(as_yaml(settings))
    shutil.rmtree(data)
    prepare_nano(data, "vision", "heldout", 24)
    with pytest.raises(UserError, match=r"resume: .*data\.train: other content now \(column answer changed"):
        run(settings)


def test_text_runs_through_the_same_path(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    objective = ObjectiveSettings("opd", {"teacher_view": "privileged", "divergence": "js", "support": "top_k"})
    settings = config(nano_models, text_data, tmp_path / "run", "text", objective=objective, training={"max_steps": 2})
    result = run(settings)
    assert [row["step"] for row in result.metrics if "loss" in row] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ObjectiveSettings("dodp")}, r"objective\.name: unknown objective 'dodp', did you mean 'dopd'"),
        ({"objective": ObjectiveSettings("dopd", {"beta_lite": 1})}, r"'beta_lite', did you mean 'beta_light'"),
        ({"objective": ObjectiveSettings("dopd", {"tail": "buckets"})}, r"objective\.settings\.tail: .*buckets"),
        ({"objective": ObjectiveSettings("dopd", {"top_k": 0})}, r"objective\.settings: top_k=0"),
        ({"trl": {"learning_rat": 1}}, r"trl: unknown key 'learning_rat', did you mean 'learning_rate'"),
        ({"trl": {"learning_rate": 1}}, r"trl\.learning_rate: has a key of its own, training\.l"),
        ({"trl": {"offload_scores": True}}, r"trl\.offload_scores: has a key of its own, training\.offload_scores"),
        ({"trl": {"vllm_mode": 3}}, r"trl\.vllm_mode: must be a text, not 3"),
        ({"training": {"use_vllm": True}, "trl": {"vllm_mode": "server"}}, r"training\.use_vllm: needs a GPU"),
        ({"training": {"num_generations": 3}}, r"num_generations=3 does not divide the 4 rollouts"),
        ({"training": {"eval_variants": ["boxes"]}}, r"training\.eval_variants: unknown variant 'boxes'"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device checks are about a machine without a GPU")
def test_wrong_settings_are_named_before_anything_is_loaded(
    nano_models: Path, vision_data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(config(nano_models, vision_data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_teacher_with_another_vocabulary_is_refused(nano_models: Path, vision_data: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(nano_models / "vision-teacher", teacher)
    described = json.loads((teacher / "config.json").read_text())
    described["text_config"]["vocab_size"] += 8
    (teacher / "config.json").write_text(json.dumps(described))
    settings = config(nano_models, vision_data, tmp_path / "run")
    settings.model.teacher = str(teacher)
    with pytest.raises(UserError, match=r"model\.teacher: its vocabulary has \d+ entries, the student's"):
        run(settings)


def test_text_student_with_image_data_is_refused_by_example(
    nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    settings = config(nano_models, vision_data, tmp_path / "run", "text")
    with pytest.raises(UserError, match=r"data\.train: example 'nano-vision.*' has images, but model\.student"):
        run(settings)


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_tells_what_came_of_the_run(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dopd_vl.commands import train
    from dopd_vl.training import run

    result = run.RunResult(tmp_path, tmp_path / "student", [{"step": 0, "eval_accuracy": 0.25}])
    monkeypatch.setattr(run, "run_training", lambda config, console: result)
    monkeypatch.setenv("RANK", str(rank))
    assert train.main([]) == 0
    assert ("held-out accuracy 25.0% before" in capsys.readouterr().out) is (rank == 0)
