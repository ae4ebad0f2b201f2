"""The quickstart through the real command: its table fits a terminal, its figures are those of its files."""

import io
import json
from pathlib import Path

import yaml

from dopd_vl.commands.quickstart import QuickstartConfig, Row, as_study, show_rows
from dopd_vl.common.configuration import read_config
from dopd_vl.common.terminal import Terminal
from dopd_vl.studies.config import StudyConfig, check
from tests.commands import dopd_vl


def test_it_ends_with_a_table_of_what_it_measured_a_report_and_alarms(nano_models: Path, tmp_path: Path) -> None:
    study = {
        "name": "quickstart",
        "train_config": "configs/llm/nano.yaml",
        "settings": {
            "model.student": str(nano_models / "text-student"),
            "model.teacher": str(nano_models / "text-teacher"),
            "data.train": "study:train",
            "data.eval": "study:held-out",
            "training.max_completion_length": 4,
        },
        "data": {
            split: {"kind": "nano", "options": {"world": "text", "split": name, "seed": 0}}
            for split, name in (("train", "train"), ("held-out", "heldout"))
        },
        "score": {"held-out": "study:held-out"},
        "score_variants": ["none", "hints"],
        "cells": {
            "vanilla OPD": {"objective.name": "opd"},
            "blown up": {"objective.name": "opd", "training.learning_rate": 1e9, "training.warmup_steps": 0},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    folder = tmp_path / "quickstart"
    options = ["--study", json.dumps([str(tmp_path / "study.yaml")]), "--output_dir", folder, "--seed", 1]
    sizes = ["--steps", 3, "--train_size", 32, "--eval_size", 6]

    result = dopd_vl("quickstart", *options, *sizes)
    assert result.returncode == 0, result.stderr + result.stdout
    summary = json.loads((folder / "summary.json").read_text())
    names = [row["name"] for row in summary["rows"]]
    assert names == ["student before", "vanilla OPD", "blown up", "teacher"]
    for row in summary["rows"]:
        assert row["name"] in result.stdout
        assert f"{row['accuracy']:.1%}" in result.stdout
    scores = json.loads((folder / "methods/runs/vanilla-opd/seed-1/scores.json").read_text())["scores"]
    assert scores["student"]["held-out"]["none"]["accuracy"] == summary["rows"][1]["accuracy"]
    blown_up = summary["rows"][2]["alarm"]
    assert blown_up.startswith("alarm at step ")
    assert f"blown up: {blown_up}" in result.stdout
    assert "<html" in (folder / "report.html").read_text()
    assert f"report: {folder / 'report.html'}" in result.stdout

    refused = dopd_vl("quickstart", *options, *sizes, "--steps", 4)
    assert refused.returncode == 2
    assert "other settings" in refused.stderr


def test_a_question_that_tunes_is_run_at_the_rate_of_its_training_run() -> None:
    study = as_study(QuickstartConfig(study=["study/worlds/nano-text", "study/methods"]))
    assert read_config(StudyConfig, ["--config", "study/methods"], "test").tune, "it tunes, as a study"
    assert len(check(study)) == len(study.cells)


def test_the_table_is_whole_in_80_columns() -> None:
    said = io.StringIO()
    rows = [Row("DOPD, 3 times the rate", 1.0, 1.0, 10.25, -12.5), Row("student before", 0.5, 0.5, 0.1)]
    console = Terminal(file=said, width=80, force_terminal=True, color_system=None)
    show_rows(console, rows, QuickstartConfig(eval_size=10_000, steps=1000))
    lines = said.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(all(text in line for text in ("DOPD, 3 times the rate", "100.0%", "10.25", "-1250%")) for line in lines)
