"""A study that was run before: what has other settings or is damaged is never taken for what the study would make."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dopd_vl.common.files import read_jsonl
from dopd_vl.evaluation.accuracy import Accuracy, summarise
from dopd_vl.studies.worker import _score
from tests.commands import dopd_vl, remount, start_dopd_vl
from tests.conftest import prepare_nano
from tests.run_folder.test_damage import DAMAGES, damage, files_of

A, B = "runs/a/seed-0", "runs/b/seed-0"


@pytest.fixture(scope="module")
def study(nano_models: Path, text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    held_out = prepare_nano(tmp_path_factory.mktemp("data") / "held-out", "text", "heldout", 4)
    return {
        "name": "study",
        "train_config": "configs/llm/nano.yaml",
        "settings": {
            "model.student": str(nano_models / "text-student"),
            "model.teacher": str(nano_models / "text-teacher"),
            "data.train": str(text_data),
            "data.eval": str(held_out),
            "training.max_steps": 2,
            "training.warmup_steps": 0,
            "training.per_device_train_batch_size": 4,
            "training.max_completion_length": 4,
            "training.eval_steps": 2,
            "training.save_steps": 1,
        },
        "cells": {"a": {"objective.name": "opd"}, "b": {}},
        "seeds": [0],
    }


def run(study: dict[str, Any], output: Path, *options: object, file: Path | None = None) -> tuple[int, str]:
    file = file or output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    done = dopd_vl("study", "--config", file, "--output_dir", output, *options, timeout=400)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def undisturbed(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "studies"
    code, said = run(study, output)
    assert code == 0, said
    return output


@pytest.fixture
def done(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed, tmp_path / "studies")
    return tmp_path / "studies"


def test_runs_of_other_settings_are_refused_by_name_and_made_anew_on_request(study: dict[str, Any], done: Path) -> None:
    before = files_of(done)
    longer = {**study, "settings": {**study["settings"], "training.max_steps": 3}}
    code, said = run(longer, done)
    assert code == 2
    assert "2 of 2 runs were made with other settings" in said
    assert "training.max_steps was 2 and is 3 now" in said
    assert "--rerun true" in said
    assert files_of(done) == before

    other_rate = {**study, "settings": {**study["settings"], "training.learning_rate": 0.5}, "seeds": [0, 1]}
    code, said = run(other_rate, done)
    assert code == 2
    assert "training.learning_rate was 0.001 and is 0.5 now" in said
    assert files_of(done) == before

    code, said = run(longer, done, "--rerun", "true")
    assert code == 0, said
    for folder in (A, B):
        rows = read_jsonl(done / "study" / folder / "metrics.jsonl")
        assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    code, said = run(longer, done)
    assert code == 0, said
    assert "4 of 4 jobs are done already" in said


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_noticed_and_mended_by_the_same_command(
    study: dict[str, Any], undisturbed: Path, done: Path, how: str
) -> None:
    """Each file of one run in one way, but its rollouts, of which there is no second copy."""
    folder = done / "study"
    whole = files_of(undisturbed / "study")
    for name in (name for name in whole if name.startswith((A, "references")) and "/checkpoint-2/" not in name):
        if not name.endswith(("rollouts.jsonl", "log.txt")):
            damage(folder / name, how)
    shutil.copyfile(undisturbed / "study" / A / "scores.json", folder / B / "scores.json")  # of another run
    shutil.rmtree(folder / A / "best")
    code, said = run(study, done)
    assert code == 0, said
    assert "b, seed 0: done again" in said
    after = files_of(folder)
    same = ("results.json", "results.md", "curves.csv", f"{A}/scores.json", f"{B}/scores.json")
    for name in (*same, f"{A}/metrics.jsonl", f"{A}/student/model.safetensors"):
        assert after[name] == whole[name], name
    assert {name: text for name, text in after.items() if name.endswith("scores.json")} == {
        name: text for name, text in whole.items() if name.endswith("scores.json")
    }


def test_rollouts_that_cannot_be_mended_are_told_and_left_out_of_the_results(
    study: dict[str, Any], undisturbed: Path, done: Path
) -> None:
    rollouts = done / "study" / A / "rollouts.jsonl"
    damage(rollouts, "flipped")
    code, said = run(study, done)
    assert code == 1
    assert f"failed: a, seed 0: resume: {rollouts}: not as the run wrote it" in said
    cells = {cell["name"]: cell for cell in json.loads((done / "study/results.json").read_text())["cells"]}
    assert (cells["a"]["missing"], cells["b"]["missing"]) == ([0], [])
    rollouts.unlink()  # as it says
    code, said = run(study, done)
    assert code == 0, said
    name = "study/results.json"
    assert (done / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_disk_that_cannot_be_written_is_one_line_and_the_same_command_goes_on(
    study: dict[str, Any], undisturbed: Path, small_disk: Path, tmp_path: Path
) -> None:
    output = small_disk / "studies"
    shutil.copytree(undisturbed, output)
    (output / "study" / B / "scores.json").unlink()
    shutil.rmtree(output / "study" / B / "student")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))
    code, said = run(study, output, file=tmp_path / "study.yaml")
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert "No space left on device" in said
    remount(small_disk, "ro")
    code, said = run(study, output, file=tmp_path / "study.yaml")
    assert code == 2, said
    assert said.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said
    assert "Read-only file system" in said
    remount(small_disk, "rw")
    filler.unlink()
    code, said = run(study, output, file=tmp_path / "study.yaml")
    assert code == 0, said
    assert (output / "study/results.json").read_bytes() == (undisturbed / "study/results.json").read_bytes()


def test_a_study_that_is_killed_takes_its_worker_along(
    study: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "studies"
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    process = start_dopd_vl("study", "--config", tmp_path / "studies.yaml", "--output_dir", output)
    metrics = output / "study" / A / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metrics.exists()
    pid = process.process.pid
    workers = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # so that it lives on for a moment
    process.send(signal.SIGKILL)
    process.result(60)
    code, said = run(study, output)
    assert code == 2
    assert "another study is writing here" in said
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}/exe").exists() for worker in workers)
    code, said = run(study, output)
    assert code == 0, said
    name = "study/results.json"
    assert (output / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_students_are_scored_in_the_type_that_is_asked_for(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was scored before there was a choice still counts as `auto`."""
    asked = []

    def evaluate(*args: Any, **settings: Any) -> tuple[Accuracy, list[Any], list[Any]]:
        asked.append(args[5])
        return summarise([], 0), [], []

    monkeypatch.setattr("dopd_vl.evaluation.run.evaluate_model", evaluate)
    monkeypatch.setattr("dopd_vl.training.run.load_examples", lambda folder, size: [])
    for parts in ("_model_parts", "_data_parts"):
        monkeypatch.setattr(f"dopd_vl.studies.finished.{parts}", lambda *args: {})
    job = {
        "models": {"student": "model"},
        "score": {"held-out": ["data", None]},
        "variants": ["none"],
        "max_new_tokens": 4,
        "batch_size": 2,
        "dtype": dtype,
        "output": str(tmp_path / "scores.json"),
    }
    _score(job, None)
    assert asked == [dtype]
    made_from = json.loads((tmp_path / "scores.json").read_text())["made_from"]
    assert made_from.get("dtype", "auto") == dtype
    assert ("dtype" in made_from) == (dtype != "auto")
