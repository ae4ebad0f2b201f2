"""The whole of a small study through the real command: stopped, taken up again, a cell that fails."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from dopd_vl.common.files import read_jsonl
from tests.commands import dopd_vl, start_dopd_vl
from tests.conftest import prepare_nano


@pytest.fixture
def study_file(nano_models: Path, tmp_path: Path) -> Path:
    def data(split: str, size: int) -> dict:
        return {"kind": "nano", "options": {"world": "text", "split": split, "size": size, "seed": 0}}

    study = {
        "output_dir": str(tmp_path),
        "name": "study",
        "train_config": "configs/llm/nano.yaml",
        "settings": {
            "model.student": str(nano_models / "text-student"),
            "model.teacher": str(nano_models / "text-teacher"),
            "data.train": "study:train",
            "data.eval": "study:held-out",
            "training.max_steps": 2,
            "training.warmup_steps": 0,
            "training.per_device_train_batch_size": 4,
            "training.max_completion_length": 4,
            "training.eval_steps": 2,
            "training.save_steps": 1,
        },
        "cells": {
            "vanilla": {"objective.name": "opd"},
            "beta 0.5": {"objective.settings": {"beta_weak": 0.5}},
            "bad": {"data.max_prompt_length": 1},  # no prompt is that short: fails at its first step
        },
        "seeds": [0, 1],
        "baseline": "vanilla",
        "data": {"train": data("train", 16), "held-out": data("heldout", 6)},
        "score_variants": ["none", "hints"],
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


def test_a_study_is_stopped_taken_up_again_and_tells_what_failed(study_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    process = start_dopd_vl("study", "--config", study_file)
    deadline = time.monotonic() + 120
    first = folder / "runs" / "vanilla" / "seed-0" / "metrics.jsonl"
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send(signal.SIGINT)
    stopped = process.result(60)
    assert stopped.returncode == 130, stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert not (folder / "results.md").exists()

    result = dopd_vl("study", "--config", study_file, timeout=400)
    assert result.returncode == 1, result.stderr
    assert "failed: bad, seed 0: " in result.stdout
    assert "max_prompt_length=1" in result.stdout

    results = json.loads((folder / "results.json").read_text())
    cells = {cell["name"]: cell for cell in results["cells"]}
    assert cells["bad"]["missing"] == [0, 1]
    for name in ("vanilla", "beta 0.5"):
        assert cells[name]["seeds"] == [0, 1]
        # What the table says is what the students were scored, and the runs have their own configuration and metrics.
        for at, seed in enumerate((0, 1)):
            run = folder / "runs" / name.replace(" ", "-") / f"seed-{seed}"
            scores = json.loads((run / "scores.json").read_text())["scores"]["student"]["held-out"]
            assert cells[name]["scores"]["held-out"]["accuracy"]["values"][at] == scores["none"]["accuracy"]
            assert len(scores["none"]["correct"]) == 6
            assert set(scores) == {"none", "hints"}
            rows = read_jsonl(run / "metrics.jsonl")
            assert [row["step"] for row in rows if "loss" in row] == [1, 2]
            assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
    assert cells["beta 0.5"]["against_baseline"]["seeds"] == 2
    assert len(results["references"]) == 2
    table = (folder / "results.md").read_text()
    assert "| beta 0.5 | 2 |" in table
    assert "not run yet" in table
    latex = (folder / "results.tex").read_text()
    assert [line.split(" & ")[0] for line in latex.splitlines() if " & " in line][:4] == ["cell", *cells]
    assert latex.count(r"\emph{") == len(results["references"])
    assert (folder / "figures" / "eval_accuracy.svg").exists()
    assert "beta 0.5" in (folder / "curves.csv").read_text()


def test_each_cell_is_run_at_the_best_of_the_values_that_the_first_seed_tried(
    study_file: Path, nano_models: Path, tmp_path: Path
) -> None:
    study = yaml.safe_load(study_file.read_text())
    study["cells"].pop("beta 0.5")
    study["tune"] = ["training.learning_rate"]
    study["tune_values"] = {"training.learning_rate": [1e-5, 1e-4]}
    study["tune_on"] = "tuning"
    study["data"]["tuning"] = {
        "kind": "nano",
        "options": {"world": "text", "split": "heldout", "size": 5, "seed": 1},
    }
    study["data"]["unused"] = study["data"]["tuning"]
    study["keep_checkpoints"] = False
    study_file.write_text(yaml.safe_dump(study, sort_keys=False))
    result = dopd_vl("study", "--config", study_file, timeout=400)
    assert result.returncode == 1, result.stderr
    assert "failed: bad learning_rate=1e-05, seed 0" in result.stdout

    folder = tmp_path / "study"
    results = json.loads((folder / "results.json").read_text())
    tried = {row["values"]["training.learning_rate"]: row for row in results["tried"] if row["cell"] == "vanilla"}
    assert list(tried) == [1e-5, 1e-4]
    best = max(tried, key=lambda rate: tried[rate]["accuracy"])
    assert [rate for rate, row in tried.items() if row["chosen"]] == [best]
    for rate, row in tried.items():
        run = folder / "runs" / f"vanilla-learning-rate={rate}" / "seed-0"
        scores = json.loads((run / "scores.json").read_text())["scores"]["student"]
        assert row["accuracy"] == scores["tuning"]["none"]["accuracy"]
        assert (list(scores["tuning"]), list(scores["held-out"])) == (["none"], ["none", "hints"])
        assert (run.parent / "seed-1").exists() == (rate == best), "the other seed has the best value alone"
    vanilla, bad = results["cells"]
    assert (vanilla["name"], vanilla["tuned"], vanilla["seeds"]) == (
        "vanilla",
        {"training.learning_rate": best},
        [0, 1],
    )
    assert results["data_sets"] == ["held-out"]
    assert (bad["seeds"], bad["missing"]) == ([], [0, 1])
    assert not any(row["chosen"] for row in results["tried"] if row["cell"] == "bad")
    table = (folder / "results.md").read_text()
    assert f"| vanilla | {best} | 2 |" in table
    assert "| cell | learning_rate=1e-05 | learning_rate=0.0001 |" in table
    assert not (tmp_path / "data" / "unused").exists(), "no run needs it"
    assert not list(folder.glob("runs/vanilla*/*/checkpoint-*")), "none is kept of what is done"

    # Once the cell that failed is left out, the same command has nothing to do, and comes to the same choice.
    study["cells"].pop("bad")
    study_file.write_text(yaml.safe_dump(study, sort_keys=False))
    students = {file: file.stat().st_mtime_ns for file in folder.glob("runs/vanilla*/*/student/*.safetensors")}
    again = dopd_vl("study", "--config", study_file, timeout=400)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in students} == students
    assert json.loads((folder / "results.json").read_text())["cells"] == [vanilla]


def test_a_data_set_that_cannot_be_opened_is_told_once_and_before_any_run(study_file: Path, tmp_path: Path) -> None:
    study = yaml.safe_load(study_file.read_text())
    study["score"] = {"elsewhere": str(tmp_path / "nowhere")}
    study_file.write_text(yaml.safe_dump(study, sort_keys=False))
    result = dopd_vl("study", "--config", study_file)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "nowhere" in line]
    assert line.startswith(f"error: {tmp_path / 'nowhere'}: no such folder")
    assert not list((tmp_path / "study").glob("**/log.txt")), "nothing was run"


def test_a_study_on_a_judged_set_tells_rollouts_apart_by_their_illusion_score(
    study_file: Path, nano_models: Path, tmp_path: Path
) -> None:
    """Two questions, one with a hint that a judge found to give the answer away: its score is in the set by hand, since
    only what becomes of it is looked at here."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = prepare_nano(tmp_path / "judged", "text", "train", 8)
    (file,) = (data / "data").iterdir()
    table = pq.read_table(file)
    scores = [4.25, 0.5, None, -0.5] * 2
    at = table.column_names.index("illusion_score")
    pq.write_table(table.set_column(at, "illusion_score", pa.array(scores, pa.float64())), file)
    audit = json.loads((data / "audit.json").read_text())
    without_digests = {key: value for key, value in audit.items() if key not in ("digest", "digests", "checksum")}
    (data / "audit.json").write_text(json.dumps(without_digests))

    study = yaml.safe_load(study_file.read_text())
    study["settings"] |= {"data.train": str(data), "training.max_steps": 2, "training.per_device_train_batch_size": 8}
    study["cells"] = {"dopd": {"objective.name": "dopd"}}
    study |= {"seeds": [0], "baseline": None, "score_variants": ["none"], "score_dtype": "bfloat16"}
    del study["data"]["train"]
    study_file.write_text(yaml.safe_dump(study, sort_keys=False))
    result = dopd_vl("study", "--config", study_file, timeout=400)
    assert result.returncode == 0, result.stderr

    folder = tmp_path / "study"
    assert (
        json.loads((folder / "runs" / "dopd" / "seed-0" / "scores.json").read_text())["made_from"]["dtype"]
        == "bfloat16"
    )
    kept = [row for row in read_jsonl(folder / "runs" / "dopd" / "seed-0" / "rollouts.jsonl")]
    rows = json.loads((folder / "results.json").read_text())["by_illusion"]
    assert {row["nats"] for row in rows} <= {4, 0, -1}
    assert sum(row["rollouts"] for row in rows) == sum(row["illusion_score"] is not None for row in kept) > 0
    for row in rows:
        mine = [one for one in kept if one["illusion_score"] is not None and one["illusion_score"] // 1 == row["nats"]]
        gaps = [gap for one in mine for gap in one["gap"]]
        assert row["gap"] == pytest.approx(sum(gaps) / len(gaps))
        assert row["accuracy"] == pytest.approx(sum(one["correct"] for one in mine) / len(mine))
    assert "| cell | illusion score (nats) | rollouts |" in (folder / "results.md").read_text()
