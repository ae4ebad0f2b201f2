"""The real command: help at once, and every mistake one line with exit code 2."""

import errno
import importlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dopd_vl.cli import COMMANDS, main
from tests.commands import ROOT, dopd_vl


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line on stderr that holds every part, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0], errors[0]


@pytest.fixture(scope="module")
def config_file(nano_models: Path, vision_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "run.yaml"
    file.write_text(
        f"output_dir: {folder / 'run'}\n"
        f"model: {{student: {nano_models / 'vision-student'}, teacher: {nano_models / 'vision-teacher'}}}\n"
        f"data: {{train: {vision_data}}}\n"
        "training:\n  max_steps: 1\n  per_device_train_batch_size: 2\n  num_generations: 1\n"
        "  max_completion_length: 4\n  gradient_checkpointing: false\n"
    )
    return file


def test_help_answers_in_under_half_a_second_and_lists_every_command() -> None:
    best = float("inf")
    for _ in range(5):  # the fastest of five: a loaded machine is slow now and then
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", "dopd_vl.cli", "--help"], capture_output=True, text=True)
        best = min(best, time.perf_counter() - start)
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("prepare", "train", "evaluate", "quickstart", "plan"))
    assert best < 0.5


def test_help_imports_no_torch() -> None:
    code = "import sys; from dopd_vl.cli import main; main(['--help']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False"


FULL = sqlite3.OperationalError("database or disk is full")
FULL.sqlite_errorcode = sqlite3.SQLITE_FULL


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "a file: cannot be used (No space left on device)"),
        (OSError(errno.EROFS, "x", "/data/set"), "/data/set: cannot be used (Read-only file system)"),
        (OSError(errno.EACCES, "x", "/data/set"), "/data/set: cannot be used (Permission denied)"),
        (OSError(errno.EFBIG, "x", b"/data/set"), "/data/set: cannot be used (File too large)"),
        (FULL, "a file: cannot be used (database or disk is full)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "(No space left on device)"),
    ],
)
def test_a_disk_that_cannot_be_written_is_one_line_of_every_command(
    command: str, error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module(COMMANDS[command][0]), "main", fails)
    assert main([command]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_another_error_of_the_system_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(importlib.import_module(COMMANDS["report"][0]), "main", fails)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["report"])


def test_unknown_command_names_the_nearest() -> None:
    assert_one_line(dopd_vl("trian"), "unknown command 'trian'", "did you mean 'train'")


def test_print_config_writes_out_every_default(config_file: Path) -> None:
    result = dopd_vl("train", "--config", config_file, "--training.learning_rate", "0.5", "--print_config")
    assert result.returncode == 0, result.stderr
    assert "learning_rate: 0.5" in result.stdout
    assert "teacher_variant: default" in result.stdout


def test_misspelt_key_in_a_file_names_file_line_and_nearest(tmp_path: Path) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("seed: 1\ntraining:\n  learning_rat: 1.0e-3\n")
    result = dopd_vl("train", "--config", file)
    assert_one_line(result, f"{file}:3", "'training.learning_rat'", "did you mean 'training.learning_rate'")


def test_misspelt_option_names_the_nearest(config_file: Path) -> None:
    result = dopd_vl("train", "--config", config_file, "--objective.nmae", "dopd")
    assert_one_line(result, "--objective.nmae", "did you mean 'objective.name'")


def test_wrong_type_names_key_and_file(tmp_path: Path) -> None:
    file = tmp_path / "type.yaml"
    file.write_text("training:\n  max_steps: many\n")
    assert_one_line(dopd_vl("train", "--config", file), "training.max_steps", "many", str(file))


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("training: [\n")
    assert_one_line(dopd_vl("train", "--config", file), str(file), "not readable as YAML")


def test_missing_config_file_is_named() -> None:
    assert_one_line(dopd_vl("train", "--config", "nowhere.yaml"), "'nowhere.yaml'")


def test_missing_data_set_is_named(config_file: Path, tmp_path: Path) -> None:
    result = dopd_vl(
        "train", "--config", config_file, "--data.train", tmp_path / "none", "--output_dir", tmp_path / "r"
    )
    assert_one_line(result, str(tmp_path / "none"), "no such folder")


def test_missing_model_folder_is_named(config_file: Path, tmp_path: Path) -> None:
    result = dopd_vl("train", "--config", config_file, "--model.student", tmp_path / "gone")
    assert_one_line(result, "model.student", str(tmp_path / "gone"))


def test_unknown_nano_model_names_the_known_ones(config_file: Path) -> None:
    assert_one_line(dopd_vl("train", "--config", config_file, "--model.student", "nano:vision-pupil"), "vision-student")


def test_text_only_model_given_images_names_the_example(config_file: Path, nano_models: Path) -> None:
    result = dopd_vl("train", "--config", config_file, "--model.student", nano_models / "text-student")
    assert_one_line(result, "data.train: example 'nano-vision", "model.student is a text-only model")


def test_differing_vocabularies_are_refused(config_file: Path, nano_models: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(nano_models / "vision-teacher", teacher)
    described = json.loads((teacher / "config.json").read_text())
    described["text_config"]["vocab_size"] += 64
    (teacher / "config.json").write_text(json.dumps(described))
    result = dopd_vl("train", "--config", config_file, "--model.teacher", teacher)
    assert_one_line(result, "model.teacher: its vocabulary has")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_gpu_setting_on_a_cpu_names_the_key(config_file: Path) -> None:
    assert_one_line(dopd_vl("train", "--config", config_file, "--trl.fp16", "true"), "trl.fp16: needs a GPU")


def test_output_that_cannot_be_written_is_named(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = dopd_vl("train", "--config", config_file, "--output_dir", tmp_path / "file")
    assert_one_line(result, "output_dir", str(tmp_path / "file"))


def test_corrupt_image_is_set_aside_and_the_rest_is_prepared(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (48, 48), "red").save(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    rows = [
        {"id": name, "prompt": "What colour?", "images": [f"{name}.png"], "answer": "red", "task": "exact"}
        for name in ("good", "bad")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prepare.yaml").write_text(
        "source:\n  kind: jsonl\n"
        f"  options: {{path: {tmp_path / 'rows.jsonl'}, images: {tmp_path / 'images'}}}\n"
        f"output: {tmp_path / 'out'}\nmax_rejected_share: 0.5\n"
    )
    result = dopd_vl("prepare", "--config", tmp_path / "prepare.yaml")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'out'}: kept 1 of 2 records, with 1 image and 0 boxes" in result.stdout
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert rejected["id"] == "bad"


def test_train_and_evaluate_run_from_the_command_line(config_file: Path, vision_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = dopd_vl("train", "--config", config_file, "--output_dir", run, "--objective.name", "opd")
    assert result.returncode == 0, result.stderr
    assert str(run) in result.stdout
    scored = dopd_vl(
        "evaluate", "--model", run / "student", "--data", vision_data, "--size", 4, "--max_new_tokens", 4,
        "--output_dir", tmp_path / "scores",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["count"] == 4
    assert len((tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()) == 4


def test_every_configuration_that_ships_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    files = {str(file.relative_to(ROOT / "configs").with_suffix("")) for file in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name, _ in lines} == files
    assert main(["configs", "vlm/nano"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(ROOT / "configs/vlm/nano.yaml")
    assert main(["configs", "vlm/nnao"]) == 2
    assert "did you mean 'vlm/nano'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_after_ctrl_c_it_is_said_what_goes_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(COMMANDS[command][0]), "main", stopped)
    assert main([command]) == 130
    assert ("with --resume true" in capsys.readouterr().err) is (command == "train")


def test_the_help_of_train_names_every_objective_and_variant() -> None:
    from dopd_vl.objectives import OBJECTIVES
    from privileged import VARIANTS

    said = " ".join(dopd_vl("train", "--help").stdout.split()).replace("- ", "-")  # lines are broken there, too
    objectives = said.partition("one of docs/methods.md: ")[2].partition(". (type")[0]
    variants = said.partition("one of docs/data.md: ")[2].partition(". (type")[0]
    assert objectives.split(", ") == list(OBJECTIVES)
    assert variants.split(", ") == list(VARIANTS)
