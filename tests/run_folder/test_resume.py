"""Stopped at any moment and taken up again, a run ends with the files of an uninterrupted one, bit for bit."""

import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from dopd_vl.common.files import read_jsonl
from dopd_vl.run_folder.checkpoints import whole_checkpoints
from tests.commands import remount
from tests.run_folder.interrupted import halve_and_kill, kill, train

STEPS, SAVE_STEPS = 7, 2


@pytest.fixture(scope="module")
def config(nano_models: Path, text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose state is in many places: a slow average, three passes over the data, slices of a step, rows that are
    logged over a checkpoint's head, and examples that are refused."""
    settings = {
        "seed": 3,
        "model": {"student": str(nano_models / "text-student"), "teacher": None},
        "data": {"train": str(text_data), "eval": str(text_data), "eval_size": 4, "max_prompt_length": 60},
        "objective": {"name": "sdft", "settings": {"average_rate": 0.2}},
        "training": {
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": 2,
            "max_completion_length": 5,
            "gradient_checkpointing": False,
            "logging_steps": 3,
            "eval_steps": 3,
            "save_steps": SAVE_STEPS,
            "save_total_limit": 1,
        },
    }
    file = tmp_path_factory.mktemp("config") / "train.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, said = train(config, folder)
    assert code == 0, said
    return folder


def same(folder: Path, undisturbed: Path) -> None:
    files = {str(p.relative_to(undisturbed)) for p in undisturbed.rglob("*") if p.is_file()}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == files
    for name in ("metrics.jsonl", "rollouts.jsonl", "refused.jsonl", "student/model.safetensors", "best/dopd.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for name in ("best/model.safetensors", f"checkpoint-{STEPS}/average.safetensors"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_the_run_has_what_is_easily_lost(undisturbed: Path) -> None:
    """What the tests below rely on."""
    rows = read_jsonl(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [2, 3, 4, 6, 7]  # every third and every saved one
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [0, 3, 6, 7]
    assert rows[-1]["epoch"] > 2
    refused = read_jsonl(undisturbed / "refused.jsonl")
    assert {row["step"] for row in refused} >= {2, 7}
    assert [path.name for path in whole_checkpoints(undisturbed)] == [f"checkpoint-{STEPS}"]


BEGINNING = [
    ("before", "append metrics.jsonl"),
    ("before", "rename best"),
    ("after", "optimizer step 1"),
    ("after", "save_pretrained checkpoint-2"),
    ("before", "torch.save checkpoint-2/optimizer.pt"),
    ("after", "torch.save checkpoint-2/rng_state.pth"),
    ("before", "state checkpoint-2/trainer_state.json"),
    ("before", "rename checkpoint-2/average.safetensors"),
    ("before", "replace checkpoint-2/complete.json"),
]
GOING_ON = [
    (2, ("after", "optimizer step 1")),
    (2, ("before", "append rollouts.jsonl")),
    (2, ("before", "rmtree checkpoint-2")),
    (4, ("after", "torch.save checkpoint-6/scheduler.pt")),
    (4, ("before", "rmtree checkpoint-4")),
    (6, ("before", "rmtree checkpoint-6")),  # both are whole, and the run that goes on has no more to save
    (7, ("before", "rename student")),
    (7, ("after", "rename student")),
    (7, ("after", "rename .student.stale")),
]
"""The checkpoint that it goes on from, and when it is killed then."""


def test_killed_before_its_first_checkpoint_it_begins_anew(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for moment in BEGINNING:
        happens = halve_and_kill if moment == ("after", "torch.save checkpoint-2/rng_state.pth") else kill
        code, said = train(config, folder, "--resume", "true", at=moment, happens=happens)
        assert code == -signal.SIGKILL, (moment, said)
        assert whole_checkpoints(folder) == [], moment
    code, said = train(config, folder, "--resume", "true")
    assert code == 0, said
    assert "not whole, and removed: checkpoint-2" in said
    assert "no checkpoint yet, begins anew" in said
    same(folder, undisturbed)


def test_killed_again_and_again_it_ends_the_same(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(config, folder, at=("after", "replace checkpoint-2/complete.json"))[0] == -signal.SIGKILL
    for begins, moment in GOING_ON:
        assert whole_checkpoints(folder)[-1].name == f"checkpoint-{begins}"
        code, said = train(config, folder, "--resume", "true", at=moment)
        assert code == -signal.SIGKILL, (moment, said)
    code, said = train(config, folder, "--resume", "true")
    assert code == 0, said
    same(folder, undisturbed)


def test_the_command_itself_killed_from_outside(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "dopd_vl.cli", "train", "--config", str(config), "--output_dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (folder / "checkpoint-2").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    code, said = train(config, folder, "--resume", "true")
    assert code == 0, said
    same(folder, undisturbed)


def let_files_be_small(_: Path | None) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def let_files_be_tiny(_: Path | None) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))


NO_ROOM = [
    (("before", "save_pretrained checkpoint-4"), let_files_be_small, "File too large"),
    (("before", "torch.save checkpoint-4/optimizer.pt"), let_files_be_small, "torch could not write a whole file; "),
    (("before", "append metrics.jsonl"), let_files_be_tiny, "File too large"),
    (("before", "rename checkpoint-4/average.safetensors"), let_files_be_tiny, "File too large"),
]


def test_without_room_it_says_so_and_goes_on_later(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(config, folder, at=("after", "replace checkpoint-2/complete.json"))[0] == -signal.SIGKILL
    for moment, happens, reason in NO_ROOM:
        code, said = train(config, folder, "--resume", "true", at=moment, happens=happens)
        assert code == 2, (moment, said)
        error = said.splitlines()[-1]
        assert error.startswith(f"error: {folder}: cannot be written ({reason}"), said
        assert error.endswith("; whole checkpoints stay; when it can be written again, go on with --resume true")
        assert "checkpoint-2" in [path.name for path in whole_checkpoints(folder)]
    code, said = train(config, folder, "--resume", "true")
    assert code == 0, said
    same(folder, undisturbed)


def test_a_run_that_is_made_longer_ends_as_one_that_was_that_long(config: Path, tmp_path: Path) -> None:
    options = ["--training.lr_scheduler_type", "constant_with_warmup", "--training.warmup_steps", "3"]
    for folder, lengths in ((tmp_path / "longer", (SAVE_STEPS * 3, STEPS)), (tmp_path / "whole", (STEPS,))):
        for steps in lengths:
            resume = str(steps != lengths[0]).lower()
            code, said = train(config, folder, *options, "--training.max_steps", str(steps), "--resume", resume)
            assert code == 0, said
    same(tmp_path / "longer", tmp_path / "whole")


def test_a_folder_that_vanishes_is_named(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, said = train(config, folder, at=("after", "optimizer step 1"), happens=partial(_move_away, folder))
    assert code == 2
    assert said.splitlines()[-1].startswith(f"error: {folder}: cannot be written (No such file or directory)"), said


def _move_away(folder: Path, _: Path | None) -> None:
    folder.rename(folder.with_name("elsewhere"))


def test_data_that_vanishes_is_missed_when_it_is_next_read(config: Path, text_data: Path, tmp_path: Path) -> None:
    """A run has it mapped; what goes on later must find it."""
    folder, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(text_data, data)
    options = ["--data.train", str(data), "--training.max_steps", "2"]
    code, said = train(config, folder, *options, at=("after", "optimizer step 1"), happens=partial(_remove, data))
    assert code == 0, said
    assert not data.exists()
    code, said = train(config, folder, *options, "--resume", "true")
    assert code == 2
    assert said.startswith(f"error: {data}: no such folder")
    shutil.copytree(text_data, data)
    shutil.rmtree(folder / "student")
    assert train(config, folder, *options, "--resume", "true")[0] == 0
    assert (folder / "student/model.safetensors").is_file()


def _remove(folder: Path, _: Path | None) -> None:
    shutil.rmtree(folder)


def test_a_full_and_a_read_only_disk(config: Path, undisturbed: Path, small_disk: Path) -> None:
    folder = small_disk / "run"
    assert train(config, folder, at=("after", "replace checkpoint-2/complete.json"))[0] == -signal.SIGKILL
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    code, said = train(config, folder, "--resume", "true")
    assert code == 2, said
    assert said.splitlines()[-1].startswith(f"error: {folder}: cannot be written (No space left on device)"), said
    assert [path.name for path in whole_checkpoints(folder)] == ["checkpoint-2"]

    remount(small_disk, "ro")
    code, said = train(config, folder, "--resume", "true")
    assert code == 2, said
    assert said.splitlines()[-1] == f"error: output_dir: cannot write to {folder} (Read-only file system)", said
    code, said = train(config, small_disk / "another")
    assert code == 2, said
    assert said == f"error: output_dir: cannot write to {small_disk / 'another'} (Read-only file system)\n"

    remount(small_disk, "rw")
    filler.unlink()
    code, said = train(config, folder, "--resume", "true")
    assert code == 0, said
    same(folder, undisturbed)
