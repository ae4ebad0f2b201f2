"""Whatever befalls a file of an evaluation, its command says so or mends it, and what it mends is what was there."""

import json
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dopd_vl.cli import main
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import exclusive
from dopd_vl.evaluation.accuracy import Batch, Prediction, summarise
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.evaluation.run import _scored, evaluate_in_folder
from dopd_vl.training.run import load_examples
from tests.commands import Fork, remount
from tests.damages import DAMAGES, files_of


def command(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    arguments = ["evaluate", "--model", str(model), "--data", str(data), "--output_dir", str(output), "--size", "6"]
    return [*arguments, "--batch_size", "2", "--max_new_tokens", "4", "--dtype", "float32", *more]


@pytest.fixture(scope="module")
def model(nano_models: Path) -> Path:
    return nano_models / "text-student"


@pytest.fixture
def whole(model: Path, text_data: Path, tmp_path: Path) -> Path:
    """A finished evaluation in a folder named out."""
    assert main(command(model, text_data, tmp_path / "out")) == 0
    return tmp_path / "out"


def test_every_file_that_is_damaged_is_told_of_or_mended_to_what_it_was(
    model: Path, text_data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = files_of(whole)
    assert set(undisturbed) == {"evaluation.json", "predictions.jsonl", "refused.jsonl", "scores.json"}
    for name, content in undisturbed.items():
        for kind, damage in DAMAGES.items():
            if not content and kind != "deleted":
                continue
            damage(whole / name)
            capsys.readouterr()
            again = command(model, text_data, whole)
            if main(again) == 2:
                [line] = capsys.readouterr().err.splitlines()
                assert str(whole / name) in line, (name, kind)
                assert main([*again, "--overwrite", "true"]) == 0, (name, kind)
            assert files_of(whole) == undisturbed, (name, kind)


def test_rows_that_are_not_what_was_written_are_counted(
    model: Path, text_data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = whole / "predictions.jsonl"
    before = json.loads((whole / "scores.json").read_text())
    assert before["accuracy"] == 0
    file.write_text(file.read_text().replace('"correct": false', '"correct": true', 3))
    assert main(command(model, text_data, whole)) == 0
    assert "3 rows are not what was written" in capsys.readouterr().out
    assert json.loads((whole / "scores.json").read_text()) == before


@pytest.mark.parametrize("column", ["images", "privileged", "source"])
def test_a_set_with_the_same_questions_is_another_set(
    column: str, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    examples = load_examples(str(vision_data), 4)
    changed = examples[column][1]

    def change(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {column: changed if number == 0 else row[column]} if column != "source" else {column: "another"}

    other = examples.map(change, with_indices=True, features=examples.features)
    config = EvaluateConfig(str(nano_models / "vision-student"), "set", max_new_tokens=2)
    evaluate_in_folder(config, examples, tmp_path, Console(quiet=True))
    with pytest.raises(UserError, match="holds another evaluation, whose data was"):
        evaluate_in_folder(config, other, tmp_path, Console(quiet=True))


def test_results_of_nobody_knows_what_are_left_alone(
    model: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores.json").write_text('{"mine": 1}')
    assert main(command(model, text_data, tmp_path)) == 2
    assert str(tmp_path / "evaluation.json") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_second_one_that_is_refused_has_changed_nothing(
    model: Path, text_data: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(whole)
    with exclusive(whole, "evaluation"):
        assert main(command(model, text_data, whole, "--max_new_tokens", "5", "--overwrite", "true")) == 2
    assert "another evaluation is writing here" in capsys.readouterr().err
    assert files_of(whole) == before


def evaluate_with_little_room(arguments: list[str]) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
    return main(arguments)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in line


def test_without_room_it_says_so_and_goes_on_later(model: Path, text_data: Path, whole: Path, tmp_path: Path) -> None:
    undisturbed = files_of(whole)
    shutil.rmtree(whole)
    done = Fork(evaluate_with_little_room, command(model, text_data, whole)).result()
    assert_one_line(done, f"{whole}: cannot be written (File too large)")
    assert not (whole / "scores.json").exists()
    assert main(command(model, text_data, whole)) == 0
    assert files_of(whole) == undisturbed


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_and_a_read_only_disk(
    model: Path, text_data: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, filler = small_disk / "out", small_disk / "filler"
    folder.mkdir()
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert main(command(model, text_data, folder)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder}: cannot be written (No space left on device)")
    assert list(folder.iterdir()) == [], "nothing half-written"
    filler.unlink()
    assert main(command(model, text_data, folder)) == 0
    undisturbed = files_of(folder)
    remount(small_disk, "ro")
    assert main(command(model, text_data, folder)) == 0, "what is finished is shown again"
    capsys.readouterr()
    assert main(command(model, text_data, folder, "--max_new_tokens", "5", "--overwrite", "true")) == 2
    assert "(Read-only file system)" in capsys.readouterr().err
    assert files_of(folder) == undisturbed
    assert main(command(model, text_data, small_disk / "other")) == 2
    assert "(Read-only file system)" in capsys.readouterr().err


class CountedPrediction(Prediction):
    """Counts how often its source is asked for."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        CountedPrediction.asked += name == "source"
        return super().__getattribute__(name)


@pytest.mark.parametrize("count", [10, 200])
def test_a_source_of_its_own_for_each_question_costs_no_more_than_one_for_all(count: int) -> None:
    rows: list[Prediction] = [
        CountedPrediction(f"q{i}", f"s{i}", "", "", i % 2 == 0, 1, False, 0.0, 0.9, i) for i in range(count)
    ]
    CountedPrediction.asked = 0
    scored = _scored([Batch(0, rows, [])], 1)
    assert len(scored.by_source) == len(scored.scores.by_source) == count
    assert CountedPrediction.asked <= 4 * count
    same = [replace(row, source="s") for row in rows]
    assert summarise(same).accuracy == scored.scores.accuracy == 0.5
