"""Alarms judged on finished runs: what counts as collapsed, where it began, and the command that counts."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.alarms import evaluate_alarms, onset_of, verdict_of
from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl, write_jsonl
from dopd_vl.train_config import DataSettings, LoopSettings, ObjectiveSettings, TrainConfig
from tests.commands import run_script

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parents[1] / "health" / "recorded_metrics"


def run_folder(
    folder: Path, recorded: str, evaluations: list[float], name: str = "dopd", settings: dict[str, Any] | None = None
) -> Path:
    """A run folder with recorded rows, and evaluations of its beginning, middle and end."""
    folder.mkdir(parents=True)
    config = TrainConfig(
        objective=ObjectiveSettings(name, settings or {}),
        data=DataSettings(eval_size=100),
        training=LoopSettings(
            per_device_train_batch_size=32, num_generations=1, max_completion_length=48, learning_rate=3e-3
        ),
    )
    (folder / "config.yaml").write_text(as_yaml(config))
    rows = read_jsonl(RECORDED / f"{recorded}.jsonl")
    start, middle, end = ({"step": step, "eval_accuracy": v} for step, v in zip((0, 50, 100), evaluations, strict=True))
    write_jsonl(folder / "metrics.jsonl", [start, *rows[:50], middle, *rows[50:], end])
    return folder


@pytest.mark.parametrize(
    ("evaluations", "verdict"),
    [
        ([0.30, 0.10, 0.00], "collapsed"),
        # 0.19 to 0.15 of 100 is under 0.8, but z = 0.04 / sqrt(2 * 0.17 * 0.83 / 100) = 0.75.
        ([0.19, 0.16, 0.15], "unclear"),
        ([0.19, 0.20, 0.19], "healthy"),
        # 0.41 to 0.24: z = 0.17 / sqrt(2 * 0.325 * 0.675 / 100) = 2.57, and 0.24 is not under 0.8 of 0.29.
        ([0.29, 0.41, 0.24], "decayed"),
        ([0.30, 0.20, 0.60], "healthy"),
        ([1.00, 1.00, 1.00], "healthy"),
    ],
)
def test_what_became_of_a_run_follows_its_held_out_accuracy(evaluations: list[float], verdict: str) -> None:
    assert verdict_of([{"eval_accuracy": value} for value in evaluations], 100) == verdict


def test_one_task_that_flips_is_no_collapse() -> None:
    def row(**tasks: float) -> dict[str, float]:
        by_task = {f"eval_accuracy/{name}": value for name, value in tasks.items()}
        return {"eval_accuracy": sum(tasks.values()) / len(tasks), **by_task}

    start = row(compare=0.6, steps=0.04, story=0.12)
    assert verdict_of([start, row(compare=0.0, steps=0.16, story=0.12)], 100) == "one-task"
    assert verdict_of([start, row(compare=0.0, steps=0.0, story=0.12)], 100) == "collapsed"
    assert verdict_of([row(compare=0.6), row(compare=0.0)], 100) == "collapsed"


def test_the_onset_is_where_a_quarter_of_the_fall_is_lost_for_good() -> None:
    # 0.4 up to step 20, then 0.01 less each step down to 0 at step 60. The moving mean of 5 is exact on a line: it is
    # above 0.4 - 0.25 * 0.4 = 0.3 until step 30, where it is 0.3.
    accuracy = [0.4] * 20 + [0.4 - 0.01 * i for i in range(1, 41)] + [0.0] * 10
    rows = [{"step": i + 1, "loss": 0.1, "rollout_accuracy": value} for i, value in enumerate(accuracy)]
    onset, peak = onset_of(rows)
    assert onset in (29, 30)  # 0.3 itself, but for rounding
    assert peak is not None
    assert peak <= 18
    assert onset_of(rows[:20]) == (None, None)
    assert onset_of([{"step": 1, "loss": 0.1}]) == (None, None)


def test_runs_are_counted_by_what_became_of_them_and_what_was_said(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path / "collapsed", "dopd-collapses", [0.29, 0.0, 0.0]),
        run_folder(tmp_path / "healthy", "opd-rises", [0.29, 0.56, 0.72], "opd"),
        run_folder(tmp_path / "missed", "opd-rises", [0.29, 0.56, 0.02], "opd"),
        run_folder(tmp_path / "false-alarm", "dopd-collapses", [0.29, 0.3, 0.3]),
        run_folder(tmp_path / "other-version", "opd-rises", [0.29, 0.3, 0.3], "opd", {"depth": 3}),
        run_folder(tmp_path / "unfinished", "opd-rises", [0.29, 0.3, 0.3], "opd"),
    ]
    rows = read_jsonl(folders[-1] / "metrics.jsonl")
    write_jsonl(folders[-1] / "metrics.jsonl", rows[:80])
    scores = evaluate_alarms(folders)
    assert [(run.folder.name, run.verdict, bool(run.alarms)) for run in scores.runs] == [
        ("collapsed", "collapsed", True),
        ("healthy", "healthy", False),
        ("missed", "collapsed", False),
        ("false-alarm", "healthy", True),
    ]
    assert (scores.caught("collapsed"), len(scores.of("collapsed")), scores.caught("healthy")) == (1, 2, 1)
    assert scores.caught_within(20, "collapsed") == 1
    assert scores.caught_within(-5, "collapsed") == 0
    (line,) = scores.unreadable
    assert "other-version" in line
    assert "unknown key 'depth'" in line
    hidden = evaluate_alarms(folders[:2], without_verifier=True)
    assert [bool(run.alarms) for run in hidden.runs] == [True, False]
    assert "no_correct" not in {alarm.kind for alarm in hidden.runs[0].alarms}


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder, it has no config"):
        evaluate_alarms([tmp_path])


def test_the_command_of_the_page_counts_and_fails_on_a_false_alarm(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    assert "python benchmarks/alarms.py 'runs/studies/*/*/runs/*/seed-*' --output alarms.json" in page
    cell = tmp_path / "runs" / "studies" / "map" / "start" / "runs" / "dopd"
    run_folder(cell / "seed-0", "dopd-collapses", [0.3, 0.0, 0.0])
    command = partial(run_script, ROOT / "benchmarks" / "alarms.py", "runs/studies/*/*/runs/*/seed-*", cwd=tmp_path)
    first = command("--output", "alarms.json")
    assert first.returncode == 0, first.stderr
    assert "collapsed: 1 of 1 told, 1 within 20 steps of the onset" in first.stdout
    (run,) = json.loads((tmp_path / "alarms.json").read_text())
    assert run["verdict"] == "collapsed"
    assert run["alarms"][0]["kind"] == "collapse"
    run_folder(cell / "seed-1", "dopd-collapses", [0.3, 0.3, 0.3])
    again = command()
    assert again.returncode == 1
    assert "healthy: 1 of 1 with a false alarm" in again.stdout
    shutil.rmtree(tmp_path / "runs")
    assert command().returncode == 2
