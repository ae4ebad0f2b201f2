"""Where nothing has a verdict no command says 0: figures are left out or null, and a line says so and why."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dopd_vl.commands.quickstart import QuickstartConfig, Row, show_rows
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.run_folder.checkpoints import read_mark
from dopd_vl.training.run import load_examples
from privileged import load_privileged
from tests.commands import dopd_vl
from tests.conftest import MakeTrainer

STEPS = 2


@pytest.fixture(scope="module")
def open_data(text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions whose answers are free text, without boxes and with hints."""
    folder = tmp_path_factory.mktemp("open")
    rows = load_privileged(text_data).select(range(6))
    records = [
        {"id": row["id"], "prompt": row["prompt"], "answer": row["answer"], "task": "open"}
        | {"hints": row["privileged"]["hints"]}
        for row in rows
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = ["--source.kind", "jsonl", "--source.options.path", folder / "records.jsonl"]
    prepared = dopd_vl("prepare", *source, "--output", folder / "data")
    assert prepared.returncode == 0, prepared.stderr
    return folder / "data"


def settings_of_a_run(models: Path, train: Path, held_out: Path) -> dict[str, Any]:
    return {
        "model.student": str(models / "text-student"),
        "model.teacher": str(models / "text-teacher"),
        "data.train": str(train),
        "data.eval": str(held_out),
        "training.max_steps": STEPS,
        "training.learning_rate": 1e-2,
        "training.per_device_train_batch_size": 4,
        "training.max_completion_length": 4,
        "training.eval_steps": 1,
        "training.save_steps": 2,
    }


def options_of(settings: dict[str, Any], output: Path) -> list[object]:
    return ["--output_dir", output, *(word for key, value in settings.items() for word in (f"--{key}", value))]


def test_a_run_without_a_score_says_so_and_keeps_its_last_student(
    nano_models: Path, text_data: Path, open_data: Path, tmp_path: Path
) -> None:
    settings = settings_of_a_run(nano_models, text_data, open_data)
    result = dopd_vl("train", *options_of(settings, tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    told = (
        "eval_accuracy is not scored (variant none): none of 6 responses has a verdict (task 'open': free text has no"
    )
    assert result.stderr.count(told) == 1
    assert "held-out accuracy: not scored; best/ is the student of its last step" in result.stdout
    evaluations = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval_entropy" in row]
    assert [row["step"] for row in evaluations] == [0, 1, 2]
    assert all("eval_accuracy" not in row and row["eval_unscored"] == 6 for row in evaluations)
    facts = read_mark(tmp_path / "run" / "best", "dopd.json")
    assert facts is not None
    assert facts["step"] == STEPS
    weights = [(tmp_path / "run" / name / "model.safetensors").read_bytes() for name in ("best", "student")]
    assert weights[0] == weights[1]
    assert "| accuracy | not scored | not scored |" in (tmp_path / "run" / "student" / "README.md").read_text()
    more = ["--training.early_stopping_patience", 2]
    refused = dopd_vl("train", *options_of(settings, tmp_path / "stops"), *more)
    assert refused.returncode == 2
    assert "training.early_stopping_patience: nothing in data.eval is scored" in refused.stderr


def test_the_best_student_is_chosen_by_the_first_variant_that_is_scored(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    options = options_of(settings_of_a_run(nano_models, text_data, text_data), tmp_path / "run")
    more = ["--training.eval_variants", '["box_label", "none"]', "--data.eval_size", 4]
    result = dopd_vl("train", *options, *more)
    assert result.returncode == 0, result.stderr
    assert "eval_accuracy is not scored (variant box_label): none of 4 examples can be shown" in result.stderr
    assert "best/ is the student with the highest eval_none_accuracy" in result.stdout
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval_none_accuracy" in row]
    assert all(row["eval_refused"] == 4 and "eval_entropy" not in row for row in rows)
    facts = read_mark(tmp_path / "run" / "best", "dopd.json")
    assert facts is not None
    assert facts["eval_none_accuracy"] == max(row["eval_none_accuracy"] for row in rows)


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        ("none", "none of 6 responses has a verdict (task 'open': free text has no verifier)"),
        ("box_label", "none of 6 examples can be shown to the model; "),
    ],
)
def test_evaluate_says_not_scored(nano_models: Path, open_data: Path, tmp_path: Path, variant: str, why: str) -> None:
    options = ["--model", nano_models / "text-student", "--data", open_data, "--variant", variant]
    result = dopd_vl("evaluate", *options, "--max_new_tokens", 4, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert f"not scored: {why}" in result.stdout
    assert "0.0%" not in result.stdout
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["accuracy"], scores["calibration_error"], scores["estimates"]) == (None, None, {})


def test_a_study_s_table_says_not_scored(nano_models: Path, text_data: Path, open_data: Path, tmp_path: Path) -> None:
    study: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "name": "study",
        "train_config": "configs/llm/nano.yaml",
        "settings": settings_of_a_run(nano_models, text_data, open_data),
        "cells": {"vanilla": {"objective.name": "opd"}, "dopd": {}},
        "baseline": "vanilla",
        "seeds": [0],
        "score_variants": ["none", "hints"],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    result = dopd_vl("study", "--config", tmp_path / "study.yaml")
    assert result.returncode == 0, result.stderr + result.stdout
    rows = [line for line in result.stdout.splitlines() if line.startswith(("| vanilla", "| dopd", "| *"))]
    assert len(rows) == 4
    assert all("not scored" in row for row in rows)
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert {share for scores in results["references"].values() for share in scores.values()} == {None}
    measured = [set(scores) for cell in results["cells"] for scores in cell["scores"].values()]
    assert measured == [{"entropy", "mean_tokens", "clipped"}] * 2


def test_the_quickstart_s_table_says_not_scored() -> None:
    console = Console(width=80, record=True, file=None)
    with console.capture() as said:
        show_rows(console, [Row("student before", None, None, None)], QuickstartConfig())
    assert said.get().count("not scored") == 2


def test_a_metric_that_cannot_choose_is_named(make_trainer: MakeTrainer, open_data: Path) -> None:
    trainer = make_trainer(
        "text",
        eval_dataset=load_examples(str(open_data), 2),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    assert "eval_accuracy" not in trainer.evaluate()
    with pytest.raises(UserError, match=r"^metric_for_best_model: accuracy cannot be measured: none of 2 responses"):
        trainer.train()
