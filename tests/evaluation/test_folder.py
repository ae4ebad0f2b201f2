"""An evaluation's folder: whatever moment it is stopped at, the same command ends as if it had not been."""

import json
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation.accuracy import Batch, Prediction
from dopd_vl.evaluation.folder import EvaluationFolder, verdicts_of
from dopd_vl.evaluation.sampling import Sampling
from dopd_vl.views import Refusal
from tests.commands import dopd_vl, start_dopd_vl

TWO = Sampling(samples=2, temperature=1.0)


def prediction(index: int, sample: int, correct: bool | None = True, text: str = "a\u2028b") -> Prediction:
    return Prediction(f"q{index}", "s", text, "x", correct, 3, False, 0.5, 0.9, index, sample)


def batches() -> list[Batch]:
    """Three questions of two responses in batches of four; the second question is refused."""
    first = Batch(0, [prediction(0, 0), prediction(0, 1, False)], [(1, Refusal("q1", "no image"))])
    return [first, Batch(1, [prediction(2, 0), prediction(2, 1)], [])]


def test_whole_batches_come_back_as_they_were(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path, {"model": "m"})
    for batch in batches():
        folder.add(batch)
    assert EvaluationFolder(tmp_path, {"model": "m"}).recover(3, 4, TWO) == (batches(), [])


def test_cut_anywhere_what_is_left_is_whole_batches(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path, {"model": "m"})
    for batch in batches():
        folder.add(batch)
    whole, refused = ((tmp_path / name).read_bytes() for name in ("predictions.jsonl", "refused.jsonl"))
    for length in range(len(whole)):
        (tmp_path / "predictions.jsonl").write_bytes(whole[:length])
        (tmp_path / "refused.jsonl").write_bytes(refused)
        done, left = folder.recover(3, 4, TWO)
        assert [batch.number for batch in done] + left == [0, 1]
        assert done == batches()[: len(done)]
        rows = (tmp_path / "predictions.jsonl").read_text().count("\n")
        assert rows == sum(len(batch.predictions) for batch in done)


def test_another_batch_size_goes_on_with_what_is_there(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path, {"model": "m"})
    folder.add(batches()[0])
    done, left = folder.recover(3, 1, TWO)
    assert [batch.number for batch in done] == [0, 1, 2, 3]
    assert left == [4, 5]


def test_a_folder_of_another_evaluation_is_left_alone_unless_told(tmp_path: Path) -> None:
    EvaluationFolder(tmp_path, {"model": "m", "variant": "none"}).add(batches()[0])
    with pytest.raises(UserError, match='whose model was "m" and not "n"; choose another folder'):
        EvaluationFolder(tmp_path, {"model": "n", "variant": "none"})
    assert (tmp_path / "predictions.jsonl").exists()
    EvaluationFolder(tmp_path, {"model": "n", "variant": "none"}, overwrite=True)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_questions_without_a_verdict_are_no_part_of_the_score() -> None:
    rows = [prediction(0, 0), prediction(0, 1, False), prediction(1, 0, None), prediction(1, 1, None)]
    assert verdicts_of(rows) == [[True, False]]
    assert "index" in asdict(rows[0])


def evaluation(model: Path, data: Path, output: Path) -> list[object]:
    arguments = ["evaluate", "--model", model, "--data", data, "--output_dir", output]
    arguments += ["--batch_size", "4", "--max_new_tokens", "12", "--dtype", "float32"]
    return [*arguments, "--sampling.samples", "3", "--sampling.temperature", "1.0"]


@pytest.fixture(scope="module")
def undisturbed(nano_models: Path, vision_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    assert dopd_vl(*evaluation(nano_models / "vision-student", vision_data, folder)).returncode == 0
    return folder


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again_it_says_what_it_would_have(
    nano_models: Path, vision_data: Path, undisturbed: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    cut = tmp_path / "cut"
    command = evaluation(nano_models / "vision-student", vision_data, cut)
    process = start_dopd_vl(*command)
    kept = cut / "predictions.jsonl"
    end = time.monotonic() + 120
    while not (kept.exists() and kept.stat().st_size) and process.process.is_alive() and time.monotonic() < end:
        time.sleep(0.005)
    process.send(sign)
    said = process.result(60)
    assert said.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sign]
    if sign == signal.SIGINT:
        assert "run the same command again to go on" in said.stderr
    assert not (cut / "scores.json").exists(), "it ended before it could be stopped"
    assert dopd_vl(*command).returncode == 0
    for name in ("predictions.jsonl", "refused.jsonl"):
        assert (cut / name).read_bytes() == (undisturbed / name).read_bytes()
    ours, theirs = (json.loads((folder / "scores.json").read_text()) for folder in (cut, undisturbed))
    assert {**ours, "output_dir": ""} == {**theirs, "output_dir": ""}
    assert set(ours["estimates"]) == {"avg@3", "pass@2", "pass@3"}
