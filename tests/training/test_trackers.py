"""Trackers get the metrics of a run, and its rollouts as a table."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.files import read_jsonl
from dopd_vl.train_config import TrainConfig, in_todays_keys
from dopd_vl.training.trackers import COLUMNS, STEP, TABLE, TABLES
from tests.commands import ROOT, dopd_vl
from tests.conftest import MakeTrainer
from tests.pages import commands_of, type_in
from tests.training.test_nothing_to_learn import command

METRICS = ("token_share/LH", "gap/mean", "entropy", "rollout_accuracy")


def needs(package: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def said(run: Path) -> list[str]:
    return [row["response"] for row in read_jsonl(run / "rollouts.jsonl")]


@pytest.mark.parametrize("tracker", TABLES)
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    done = dopd_vl("train", "--data.train", tmp_path / "nowhere", "--training.report_to", f"[{tracker}]", cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.endswith(f"training.report_to: {tracker} is not installed; pip install {tracker}")
    assert not list(tmp_path.iterdir())


@needs("tensorboard")
def test_tensorboard_has_the_metrics_and_the_rollouts(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    done = dopd_vl(*command(nano_models, text_data, run, "--training.report_to", "[tensorboard]"))
    assert done.returncode == 0, done.stderr
    [file] = run.glob("runs/*/events*")
    events = EventAccumulator(str(file), {"tensors": 0}).Reload()
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    for name in METRICS:
        found = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert found == pytest.approx({row["step"]: row[name] for row in rows})
    tables = events.Tensors(f"{TABLE}/text_summary")
    assert [event.step for event in tables] == [1, 2]
    text = tables[0].tensor_proto.string_val[0].decode()
    ids = [row["id"] for row in read_jsonl(run / "rollouts.jsonl") if row["step"] == 1]
    assert len(text.splitlines()) == 2 + len(ids)


@needs("tensorboard")
def test_the_page_s_command_reports(nano_models: Path, vision_data: Path, tmp_path: Path) -> None:
    [typed] = commands_of("docs/trackers.md")
    models = [f"--model.{role}={nano_models}/vision-{role}" for role in ("student", "teacher")]
    type_in(
        *(tmp_path, typed, *models, f"--data.train={vision_data}", f"--data.eval={vision_data}", "--data.eval_size=2"),
        *("--training.max_steps=1", "--training.per_device_train_batch_size=4", "--training.max_completion_length=5"),
        "--output_dir=run",
    )
    assert list((tmp_path / "run").glob("runs/*/events*"))


@needs("trackio")
def test_trackio_has_the_metrics_and_the_rollouts(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    run, kept = tmp_path / "run", tmp_path / "trackio"
    words = command(nano_models, text_data, run, "--training.report_to", "[trackio]", "--trl.project", "small")
    # It reads its folder's name when it is imported.
    done = subprocess.run(
        [sys.executable, "-m", "dopd_vl.cli", *map(str, words)],
        env={**os.environ, "TRACKIO_DIR": str(kept), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(kept / "small.db") as database:
        rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics order by id")]
    first = next(row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row)
    logged = next(row for row in rows if "train/loss" in row)
    assert {name: logged[f"train/{name}"] for name in METRICS} == {name: first[name] for name in METRICS}
    tables = [row[TABLE]["_value"] for row in rows if TABLE in row]
    assert [line["response"] for table in tables for line in table] == said(run)


class Recorder(SimpleNamespace):
    """What stands in for a tracker's package: remembers what was logged."""

    def __init__(self) -> None:
        super().__init__(logged=[], __spec__=ModuleSpec("", None))
        self.Table = lambda columns, data: (columns, data)
        self.echarts = SimpleNamespace(Table=lambda: SimpleNamespace(add=lambda columns, data: (columns, data)))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((values[TABLE], values.get(STEP, step)))


@pytest.mark.parametrize("tracker", ["wandb", "swanlab"])
def test_other_trackers_are_given_the_rollouts(
    tracker: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, tracker, recorder)
    trainer = make_trainer("text", max_steps=2, rollouts_to_keep=3)
    trainer.args.report_to = [tracker]
    trainer.train()
    assert [step for _, step in recorder.logged] == [1, 2]
    columns, rows = recorder.logged[-1][0]
    assert columns == list(COLUMNS)
    assert [row[2] for row in rows] == [rollout.text for rollout in trainer.kept_rollouts]
    assert len(rows) == 3


def test_a_run_goes_on_with_another_tracker_and_from_a_folder_that_named_it_under_trl(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    words = command(nano_models, text_data, tmp_path / "run", "--training.save_steps", 1)
    assert dopd_vl(*words).returncode == 0
    file = tmp_path / "run" / "config.yaml"
    saved = yaml.safe_load(file.read_text())
    saved["training"]["report_to"] = ["mlflow"]
    file.write_text(yaml.safe_dump(saved))
    again = dopd_vl(*words, "--resume", "true")
    assert again.returncode == 0, again.stderr
    today = yaml.safe_load(as_yaml(TrainConfig()))
    today["training"].pop("report_to")
    before = {**today, "trl": {"report_to": "wandb"}}
    assert in_todays_keys(before) == {**today, "trl": {}, "training": {**today["training"], "report_to": ["wandb"]}}
