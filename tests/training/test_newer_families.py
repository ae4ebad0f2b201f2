"""Mixtures of experts and Qwen3.5, with a vision tower and without, through the commands."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.common.files import read_jsonl
from tests.commands import dopd_vl
from tests.families import TEXT, VISION

LORA = {"r": 2, "alpha": 4}


@pytest.fixture(scope="module")
def runs(
    families: Callable[[str], Path], vision_data: Path, text_data: Path, tmp_path_factory: Any
) -> Callable[..., Path]:
    """The run folder of a family's run, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(family: str, lora: bool = False) -> Path:
        run = folder / (family + "-lora" * lora)
        if run.exists():
            return run
        world, data = ("text", text_data) if family in TEXT else ("vision", vision_data)
        words = ["--model.student", families(family) / f"{world}-student"]
        words += ["--model.teacher", families(family) / f"{world}-teacher"]
        words += ["--data.train", data, "--data.eval", data, "--data.eval_size", 6, "--output_dir", run]
        words += ["--training.max_steps", 2, "--training.per_device_train_batch_size", 8]
        words += ["--training.max_completion_length", 6, "--training.eval_steps", 2, "--training.learning_rate", 1e-2]
        words += ["--model.lora", json.dumps(LORA)] if lora else []
        done = dopd_vl("train", *words)
        assert done.returncode == 0, done.stderr
        return run

    return run_of


@pytest.mark.parametrize(("family", "lora"), [(f, False) for f in (*VISION, *TEXT)] + [(f, True) for f in VISION])
def test_it_trains_and_is_scored_as_its_run_was(
    family: str, lora: bool, runs: Callable[..., Path], vision_data: Path, text_data: Path, tmp_path: Path
) -> None:
    run = runs(family, lora)
    rows = read_jsonl(run / "metrics.jsonl")
    learned = [row for row in rows if "loss" in row]
    assert [row["step"] for row in learned] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in learned)
    data = text_data if family in TEXT else vision_data
    predictions = []
    for batch in (1, 6):  # alone, and padded on the left among longer prompts
        words = ["--model", run / "student", "--data", data, "--size", 6, "--max_new_tokens", 6]
        done = dopd_vl("evaluate", *words, "--batch_size", batch, "--output_dir", tmp_path / str(batch))
        assert done.returncode == 0, done.stderr
        scores = json.loads((tmp_path / str(batch) / "scores.json").read_text())
        (last,) = [row for row in rows if "eval_entropy" in row and row["step"] == 2]
        assert scores["entropy"] == pytest.approx(last["eval_entropy"], rel=1e-4)
        predictions.append([row["response"] for row in read_jsonl(tmp_path / str(batch) / "predictions.jsonl")])
    assert predictions[0] == predictions[1]
