"""Every file of a run folder, damaged in every way: nothing untrue comes of it, and nothing is lost without a word."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dopd_vl.commands import report
from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.errors import UserError
from dopd_vl.common.run_layout import COMPLETE_FILE, FACTS_FILE, KEPT_FOLDER, checkpoint_step
from dopd_vl.run_folder.checkpoints import mark_whole, read_mark, whole_checkpoints
from dopd_vl.run_folder.kept_files import KeptFiles
from dopd_vl.run_folder.resume import changed_settings, open_folder
from dopd_vl.train_config import (
    DataSettings,
    HealthSettings,
    LoopSettings,
    ModelSettings,
    ObjectiveSettings,
    TrainConfig,
)
from dopd_vl.training.run import run_training

LOGS = ("metrics.jsonl", "rollouts.jsonl", "refused.jsonl", "alarms.jsonl")


def flip(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "flipped": flip,
    "deleted": lambda content: None,
}


def damage(file: Path, how: str) -> None:
    content = DAMAGES[how](file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def ended(nano_models: Path, vision_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    folder = tmp_path_factory.mktemp("ended") / "run"
    config = TrainConfig(
        output_dir=str(folder),
        model=ModelSettings(str(nano_models / "vision-student"), str(nano_models / "vision-teacher")),
        data=DataSettings(train=str(vision_data), eval=str(vision_data), eval_size=2),
        objective=ObjectiveSettings("dopd"),
        health=HealthSettings(window=2),
        training=LoopSettings(
            max_steps=3,
            num_generations=1,
            per_device_train_batch_size=2,
            max_completion_length=3,
            gradient_checkpointing=False,
            logging_steps=1,
            eval_steps=2,
            save_steps=2,
        ),
    )
    run_training(config, console=Console(quiet=True))
    config.resume = True
    return config, folder


def test_the_folder_has_what_can_be_damaged(ended: tuple[TrainConfig, Path]) -> None:
    names = files_of(ended[1])
    assert {*LOGS} - {"refused.jsonl"} <= set(names)
    assert {"best/dopd.json", "best/model.safetensors", "checkpoint-2/run/metrics.jsonl"} <= set(names)
    assert any(name.startswith("images/") for name in names)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_run_goes_on_undisturbed_or_says_what_is_damaged(
    ended: tuple[TrainConfig, Path], tmp_path: Path, how: str
) -> None:
    config, original = ended
    fingerprint = json.loads((original / "fingerprint.json").read_text())
    before = files_of(original)
    for name in before:
        folder = tmp_path / "run"
        shutil.copytree(original, folder)
        damage(folder / name, how)
        now, said, refused = files_of(folder), list[str](), None
        try:
            checkpoint = open_folder(folder, config, fingerprint, said.append)
        except UserError as error:
            refused = str(error)
        if refused is not None:
            assert name in refused, (name, refused)
            assert files_of(folder) == now, f"{name}: refused, and something was changed"
        else:
            after, told = files_of(folder), " ".join(said)
            if name.startswith("checkpoint-"):
                assert checkpoint is None or checkpoint_step(checkpoint) == 2 or "checkpoint-2" in name, name
                assert checkpoint is None or read_mark(checkpoint) is not None, name
            else:
                assert checkpoint is not None
                assert checkpoint.name == "checkpoint-3", name
            for log in LOGS:
                expected = before.get(f"{checkpoint.name if checkpoint else ''}/{KEPT_FOLDER}/{log}")
                if log == "rollouts.jsonl":
                    rows = before[log].splitlines(keepends=True)
                    upto = -1 if checkpoint is None else checkpoint_step(checkpoint)
                    expected = b"".join(row for row in rows if json.loads(row)["step"] <= upto) or None
                if log == "rollouts.jsonl" == name and how == "deleted":
                    assert "rollouts.jsonl is gone" in told
                    expected = None
                assert after.get(log) == expected, (name, log)
            assert changed_settings(folder / "config.yaml", config) == [], name
            assert after["fingerprint.json"] == before["fingerprint.json"], name
            if checkpoint is not None:
                for file in (file for file in before if file.startswith("best/") and file != "best/README.md"):
                    assert after.get(file) == before[file], (name, file)
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_report_is_the_same_or_says_what_is_damaged(
    ended: tuple[TrainConfig, Path], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(folder: Path) -> bytes:
        report.main([str(folder), "--output", str(tmp_path / "page.html")])
        return (tmp_path / "page.html").read_bytes()

    _, original = ended
    undisturbed = page(original)
    for name in files_of(original):
        folder = tmp_path / "run"
        shutil.copytree(original, folder)
        damage(folder / name, how)
        capsys.readouterr()
        said = None
        try:
            same = page(folder) == undisturbed
        except UserError as error:
            same, said = False, str(error)
        assert same or name in (said or capsys.readouterr().err), (name, said)
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", DAMAGES)
def test_the_command_that_is_named_puts_everything_right(
    ended: tuple[TrainConfig, Path], tmp_path: Path, how: str
) -> None:
    config, original = ended
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    for name in ("metrics.jsonl", "alarms.jsonl", "fingerprint.json", "student/model.safetensors", "best/dopd.json"):
        damage(folder / name, how)
    with pytest.raises(UserError, match=r"metrics\.jsonl: not as the run wrote it; `dopd-vl train .* --resume true`"):
        report.main([str(folder), "--output", str(tmp_path / "page.html")])
    moved = TrainConfig(**{**vars(config), "output_dir": str(folder)})
    run_training(moved, console=Console(quiet=True))
    assert files_of(folder) == files_of(original)


def test_damaged_weights_of_the_best_student_come_from_the_checkpoint_of_its_step(
    ended: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    config, original = ended
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    checkpoint, best = folder / "checkpoint-3", folder / "best"
    shutil.copyfile(folder / "checkpoint-2/model.safetensors", best / "model.safetensors")
    mark_whole(best, {"step": 2, "eval_accuracy": 0.5}, FACTS_FILE)
    KeptFiles(folder).copy_into(checkpoint)
    mark_whole(checkpoint, {"step": 3, "refused": [0]})
    whole = files_of(best)
    damage(best / "model.safetensors", "flipped")
    said: list[str] = []
    assert open_folder(folder, config, fingerprint, said.append) == checkpoint
    assert files_of(best) == whole
    assert "best: damaged, and put right from checkpoints: model.safetensors" in " ".join(said)

    (folder / "checkpoint-2/model.safetensors").write_bytes(b"")
    damage(best / "model.safetensors", "flipped")
    with pytest.raises(UserError, match=r"best/model.safetensors: not as it was saved at step 2.* delete checkpoint-3"):
        open_folder(folder, config, fingerprint, said.append)
    shutil.rmtree(best)
    assert open_folder(folder, config, fingerprint, said.append) == checkpoint
    assert "best is gone: the next evaluation that is better than at step 2" in " ".join(said)


def test_a_changed_number_in_a_mark_is_noticed(ended: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ended[1], folder)
    file = folder / "checkpoint-3" / COMPLETE_FILE
    mark: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps(mark | {"refused": [7]}))
    assert [path.name for path in whole_checkpoints(folder)] == ["checkpoint-2"]


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(ended: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, original = ended
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    shutil.rmtree(folder / "checkpoint-3")
    shutil.rmtree(folder / "checkpoint-2" / KEPT_FOLDER)
    mark_whole(folder / "checkpoint-2", {"step": 2, "refused": [0]})
    (folder / "digests.json").unlink()
    run_training(TrainConfig(**{**vars(config), "output_dir": str(folder)}), console=Console(quiet=True))
    for name in LOGS:
        assert files_of(folder).get(name) == files_of(original).get(name), name
    assert as_yaml(config).replace("resume: true", "resume: false") == (folder / "config.yaml").read_text()
