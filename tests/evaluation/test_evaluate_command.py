"""`dopd-vl evaluate`: mistakes are one line, progress is told, and a finished evaluation is only shown again."""

import json
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dopd_vl.cli import main
from dopd_vl.common import progress as progress_module
from dopd_vl.common.progress import Progress
from dopd_vl.evaluation.accuracy import Batch, Prediction
from dopd_vl.evaluation.run import RightSoFar
from privileged import load_privileged
from tests.commands import dopd_vl


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data: no data set given"),
        (["--data", "x", "--suite", "MMMU"], "either a data set or a suite"),
        (["--data", "x", "--dry_run", "true"], "dry_run: only the runs of a suite"),
        (["--data", "x", "--variant", "boxes"], "variant: unknown variant 'boxes'"),
        (["--data", "x", "--batch_size", "0"], "batch_size: 0 must be at least 1"),
        (["--data", "x", "--sampling.samples", "8"], "sampling.temperature"),
        (["--data", "x", "--judging.box_iou", "1.5"], "judging.box_iou: 1.5 must be above 0 and at most 1"),
        (["--suite", "MMMU", "--benchmarks.limit", "0"], "benchmarks.limit: 0 must be at least 1"),
        (["--suite", "MMMU", "--benchmarks.backend", "sglang"], "benchmarks.backend"),
        (["--suite", ","], "suite: names no benchmark"),
        (["--data", "x", "--model", ","], "model: names no model"),
        (["--data", "x", "--model", "nano:a,nano:b,nano:a"], "model: 'nano:a' is named twice"),
        (["--suite", "MMMU", "--model", "a,b"], "model: a suite is run for one model at a time"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_finished_evaluation_is_shown_again_without_the_model(
    nano_models: Path,
    text_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["evaluate", "--model", str(nano_models / "text-student"), "--data", str(text_data), "--size", "5"]
    arguments += ["--max_new_tokens", "4", "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "Wilson score interval" in capsys.readouterr().out
    before = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(before["estimates"]) == ["avg@1"]
    assert before["estimates"]["avg@1"]["value"] == before["accuracy"]
    from dopd_vl.evaluation import run

    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run, "load_model", refuse)
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "every response is there already" in told
    assert "begins" not in told, "no bar of a work that is done"
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == before
    assert main([*arguments, "--max_new_tokens", "5"]) == 2
    assert "whose max_new_tokens was 4 and not 5" in capsys.readouterr().err


def test_a_retrained_model_is_another_model(nano_models: Path, tmp_path: Path) -> None:
    import shutil

    from dopd_vl.common.digests import digest_model

    copy = Path(shutil.copytree(nano_models / "text-student", tmp_path / "student"))
    assert digest_model(str(copy)) == digest_model(str(nano_models / "text-student"))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert digest_model(str(copy)) != digest_model(str(nano_models / "text-student"))
    assert digest_model("Qwen/Qwen3-1.7B", "a") != digest_model("Qwen/Qwen3-1.7B", "b")


def test_progress_tells_rate_accuracy_and_time_left_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    said = StringIO()
    right = [Prediction(f"q{i}", "s", "", "", i == 0, 1, False, 0.0, 0.9, i) for i in range(4)]
    so_far = RightSoFar()
    so_far.with_batch(Batch(0, right, []))
    with Progress(Console(file=said, width=200), "evaluate m", 20, "responses", done=4) as progress:
        now = 102.0
        progress.advance(4, so_far.with_batch(Batch(1, right, [])))
        assert said.getvalue() == "evaluate m: begins, 20 responses, 4 done\n"  # one line every ten seconds
        now = 120.0
        progress.advance(4, so_far.with_batch(Batch(2, right, [])))
    # 8 responses of this run in 20 s, 3 of 12 right, 8 left at 2.5 s each.
    assert said.getvalue().splitlines()[1:] == ["evaluate m: 12/20 responses, 2.5 s/response, 25.0% right, 20 s left"]


def test_greedy_is_greedy_whatever_the_model_says_of_generation(
    nano_models: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for name, own in {
        "bare": {"use_cache": True, "output_attentions": False},
        "own": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
    }.items():
        model = tmp_path / name
        shutil.copytree(nano_models / "text-student", model)
        file = model / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
        arguments = ["evaluate", "--model", str(model), "--data", str(text_data), "--size", "4"]
        assert main([*arguments, "--max_new_tokens", "12", "--output_dir", str(tmp_path / f"{name}-scores")]) == 0
        said[name] = capsys.readouterr().out
    bare, own = (json.loads((tmp_path / f"{name}-scores" / "scores.json").read_text()) for name in said)
    assert (bare["accuracy"], bare["entropy"], bare["mean_tokens"]) == (
        own["accuracy"],
        own["entropy"],
        own["mean_tokens"],
    )
    assert "generation_config" not in said["bare"]
    assert "its generation_config is ignored (repetition_penalty=5.0, no_repeat_ngram_size=1)" in said["own"]


def test_responses_without_a_verdict_are_wrong_counted_and_told_of(
    text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = load_privileged(text_data).select(range(2))
    records = [{"id": row["id"], "prompt": row["prompt"], "answer": "9^{9^{9^9}}", "task": "math"} for row in rows]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = ["--source.kind", "jsonl", "--source.options.path", str(tmp_path / "records.jsonl")]
    assert main(["prepare", *source, "--output", str(tmp_path / "data")]) == 0
    arguments = ["evaluate", "--model", "nano:text-student", "--data", str(tmp_path / "data")]
    assert main([*arguments, "--max_new_tokens", "40", "--output_dir", str(tmp_path / "out")]) == 0
    assert (
        f"2 responses count as wrong, as their verifier came to no verdict; the first: {rows[0]['id']}: "
        "math-verify: more than 5 seconds"
    ) in " ".join(capsys.readouterr().out.split())
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["accuracy"], scores["undecided"], scores["unscored"]) == (0.0, 2, 0)


def test_several_models_are_in_one_table_and_variants_have_folders_of_their_own(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    models = []
    for cell in ("dopd", "a-method-whose-name-is-long"):
        models.append(tmp_path / cell / "seed-0" / "student")
        shutil.copytree(nano_models / "text-student", models[-1])
    arguments = ["evaluate", "--data", text_data, "--size", "5", "--max_new_tokens", "4"]
    both = ",".join(map(str, models))

    missing = dopd_vl(*arguments, "--model", f"{both},nano:nothing", cwd=tmp_path)
    assert missing.returncode == 2
    assert "no nano model 'nothing'" in missing.stderr
    assert not (tmp_path / "runs").exists(), "all are looked at before the first is scored"

    of_all = {}
    for variant in ("none", "hints"):
        result = dopd_vl(*arguments, "--model", both, "--variant", variant, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        for name in ("dopd-seed-0", "a-method-whose-name-is-long-seed-0"):
            ending = "" if variant == "none" else "-hints"
            folder = tmp_path / "runs" / "evaluate" / f"{name}-{text_data.name}{ending}"
            scores = of_all[folder.name] = json.loads((folder / "scores.json").read_text())
            assert scores["variant"] == variant
            assert scores["model"] in both.split(",")
            (row,) = [line for line in result.stdout.splitlines() if re.match(rf"\W+ {name} +\W", line)]
            assert f" {scores['accuracy']:.1%} " in row
    assert len(of_all) == 4

    alone = dopd_vl(*arguments, "--model", models[0], "--output_dir", tmp_path / "alone", cwd=tmp_path)
    assert alone.returncode == 0
    scores = json.loads((tmp_path / "alone" / "scores.json").read_text())
    first = of_all[f"dopd-seed-0-{text_data.name}"]
    assert {**scores, "output_dir": None} == {**first, "output_dir": None}
