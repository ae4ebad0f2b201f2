"""A run goes on only as what it began as, and only from checkpoints that are as they were saved."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from rich.console import Console
from safetensors.torch import load_file, save_file

import dopd_vl.common.digests
from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.digests import dataset_parts, digest_file, digest_image
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import exclusive
from dopd_vl.common.run_layout import COMPLETE_FILE, KEPT_FOLDER, checkpoint_step
from dopd_vl.run_folder.checkpoints import keep_newest, mark_whole, whole_checkpoints
from dopd_vl.run_folder.fingerprint import difference
from dopd_vl.run_folder.resume import open_folder
from dopd_vl.train_config import DataSettings, LoopSettings, ModelSettings, ObjectiveSettings, TrainConfig
from dopd_vl.training.run import load_examples, run_training

Change = Callable[[dict[str, Any]], None]


def run(settings: TrainConfig) -> None:
    run_training(settings, console=Console(quiet=True))


@pytest.fixture(scope="module")
def ended(nano_models: Path, text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A run of two steps with a slow average, with models and data of its own."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(nano_models / "text-student", folder / "student-model")
    shutil.copytree(nano_models / "text-teacher", folder / "teacher-model")
    shutil.copytree(text_data, folder / "data")
    settings = TrainConfig(
        output_dir=str(folder / "run"),
        model=ModelSettings(student=str(folder / "student-model"), teacher=str(folder / "teacher-model")),
        data=DataSettings(train=str(folder / "data"), eval=str(folder / "data"), eval_size=2),
        objective=ObjectiveSettings("dopd"),
        training=LoopSettings(
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            gradient_checkpointing=False,
            save_steps=1,
        ),
    )
    run(settings)
    return settings, folder


@pytest.fixture
def resumed(ended: tuple[TrainConfig, Path], tmp_path: Path) -> TrainConfig:
    """The same run in a folder that a test may change, told to go on."""
    settings, folder = ended
    shutil.copytree(folder, tmp_path / "copy")
    moved = TrainConfig(**vars(settings))
    moved.output_dir, moved.resume = str(tmp_path / "copy/run"), True
    moved.model = ModelSettings(
        student=str(tmp_path / "copy/student-model"), teacher=str(tmp_path / "copy/teacher-model")
    )
    moved.data = DataSettings(train=str(tmp_path / "copy/data"), eval=str(tmp_path / "copy/data"), eval_size=2)
    (tmp_path / "copy/run/config.yaml").write_text(as_yaml(moved))
    return moved


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_other_weights_are_refused_by_file(resumed: TrainConfig, role: str) -> None:
    file = Path(str(getattr(resumed.model, role))) / "model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=rf"resume: model\.{role}: other content now \(file model.safetensors changed\)"
    ):
        run(resumed)


def test_another_template_of_the_student_is_refused(resumed: TrainConfig) -> None:
    template = Path(resumed.model.student) / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(UserError, match=r"model\.student: other content now \(file chat_template\.jinja changed\)"):
        run(resumed)


def test_a_folder_of_before_keys_were_renamed_goes_on_and_has_todays_keys_then(resumed: TrainConfig) -> None:
    file = Path(resumed.output_dir) / "config.yaml"
    old = yaml.safe_load(as_yaml(resumed))
    old["privilege"] = {"teacher_variant": "default", "student_variant": "hints", "learner_variant": "none"}
    for name in ("share_prompts", "logits_chunk_size", "offload_scores", "rollouts_to_keep"):
        del old["training"][name]
    file.write_text(yaml.safe_dump(old))
    with pytest.raises(UserError, match=r"resume: privilege\.copy_variant was 'hints' .* is 'default' now"):
        run(resumed)
    assert yaml.safe_load(file.read_text()) == old
    old["privilege"]["student_variant"] = "default"
    file.write_text(yaml.safe_dump(old))
    run(resumed)
    assert file.read_text() == as_yaml(replace(resumed, resume=False))


@pytest.mark.parametrize(
    ("steps", "schedule", "told"),
    [
        (1, "constant", r"training\.max_steps was 2 .* and is 1 now; it can only be raised"),
        (
            4,
            "cosine",
            r"a cosine schedule of that length .* with --model\.student \S+/run/student\. .* constant can be",
        ),
        (4, "constant", None),
    ],
)
def test_a_run_is_made_longer_only_where_its_steps_so_far_would_have_been_the_same(
    resumed: TrainConfig, steps: int, schedule: str, told: str | None
) -> None:
    folder, config = Path(resumed.output_dir), yaml.safe_load(as_yaml(resumed))
    config["training"]["lr_scheduler_type"] = schedule
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    resumed.training = LoopSettings(**{**config["training"], "max_steps": steps})
    said: list[str] = []
    if told is not None:
        with pytest.raises(UserError, match=rf"^resume: .*{told}"):
            open_folder(folder, resumed, json.loads((folder / "fingerprint.json").read_text()), said.append)
        return
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    assert open_folder(folder, resumed, fingerprint, said.append) == folder / "checkpoint-2"
    assert f"{folder}: longer now: training.max_steps was 2 and is 4, the schedule constant as before" in said


def test_data_that_is_gone_is_named(resumed: TrainConfig) -> None:
    shutil.rmtree(resumed.data.train)
    with pytest.raises(UserError, match=f"{resumed.data.train}: no such folder"):
        run(resumed)


def test_another_number_of_processes_is_refused_by_all_of_them(resumed: TrainConfig) -> None:
    folder = Path(resumed.output_dir)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As torchrun starts them, but for its end: it stops the other process as soon as one has ended.
    launch = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quiet = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "dopd_vl.cli", "train", "--config", str(folder / "config.yaml")]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **quiet, **launch, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in ranks:
        _, said = process.communicate(timeout=300)
        told = [line for line in said.splitlines() if line.startswith("error: ")]
        assert process.returncode == 2
        assert len(told) == 1, said[-3000:]
        assert told[0].startswith("error: resume: the launch: the number of processes was 1 and is 2 now; ")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["", '{"format": "run-fing', '{"data.train": "0123"}', "[]"])
def test_a_run_without_a_sound_fingerprint_is_not_taken_up(resumed: TrainConfig, content: str) -> None:
    (Path(resumed.output_dir) / "fingerprint.json").write_text(content)
    without_copies(Path(resumed.output_dir))
    with pytest.raises(UserError, match=r"fingerprint\.json does not say what the run began with"):
        run(resumed)


@pytest.mark.parametrize("content", ["a: [", "\x00", "", "- 1"])
def test_a_damaged_configuration_is_named(resumed: TrainConfig, content: str) -> None:
    (Path(resumed.output_dir) / "config.yaml").write_text(content)
    without_copies(Path(resumed.output_dir))
    with pytest.raises(UserError, match=r"resume: .*config\.yaml"):
        run(resumed)


def test_a_second_run_in_the_same_folder_is_refused(resumed: TrainConfig) -> None:
    with exclusive(Path(resumed.output_dir), "run"), pytest.raises(UserError, match="another run is writing here"):
        run(resumed)


def without_copies(folder: Path) -> None:
    """Checkpoints as an earlier version left them, which kept no copies of the run folder's own files."""
    for checkpoint in whole_checkpoints(folder):
        shutil.rmtree(checkpoint / KEPT_FOLDER)
        mark_whole(checkpoint, {"step": checkpoint_step(checkpoint), "refused": [0]})


def _of(example: dict[str, Any], column: str, value: Any) -> None:
    example[column] = value


CHANGES: dict[str, Change] = {
    "prompt": lambda e: _of(e["prompt"][0], "content", "What else?"),
    "images": lambda e: _of(e["images"][0], "bytes", e["images"][0]["bytes"][:-1] + b"?"),
    "answer": lambda e: _of(e, "answer", "something else"),
    "task": lambda e: _of(e, "task", "exact"),
    "source": lambda e: _of(e, "source", "elsewhere"),
    "privileged": lambda e: _of(e["privileged"]["boxes"][0]["bbox"], 0, 0.5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("column", CHANGES)
def test_a_change_of_any_column_of_one_example_is_noticed(vision_data: Path, column: str) -> None:
    dataset = load_examples(str(vision_data))
    rows = dataset.to_list()
    before = dataset_parts(dataset)
    assert dataset_parts(Dataset.from_list(rows, features=dataset.features)) == before
    CHANGES[column](rows[13])
    now = dataset_parts(Dataset.from_list(rows, features=dataset.features))
    told = difference({"data.train": before}, {"data.train": now})
    assert told == f"data.train: other content now (column {column} changed)"


def test_fewer_examples_and_another_order_are_noticed(vision_data: Path) -> None:
    dataset = load_examples(str(vision_data))
    before = {"data.train": dataset_parts(dataset)}
    fewer = {"data.train": dataset_parts(dataset.select(range(20)))}
    assert difference(before, fewer) == "data.train: the number of examples was 24 and is 20 now"
    turned = {"data.train": dataset_parts(dataset.select(range(23, -1, -1)))}
    assert "column id changed" in str(difference(before, turned))
    assert difference(before, {"data.train": dataset_parts(dataset)}) is None


@pytest.mark.parametrize("position", [0, 30_000, 120_000, -1])
def test_an_images_length_and_both_ends_are_looked_at(position: int) -> None:
    image = b"x" * 40_000 + b"y" * 100_000
    changed = bytearray(image)
    changed[position] ^= 1
    assert len({digest_image(bytes(content)) for content in (image, changed, image[:-1], image + b"y")}) == 4


def test_in_a_large_file_of_weights_no_tensor_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dopd_vl.common.digests, "READ_WHOLE", 1000)
    generator = torch.Generator().manual_seed(0)
    sizes = {"embedding": 200_000, "norm": 8, "layer": 30_000, "bias": 1}
    weights = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    before = digest_file(file)
    assert digest_file(file) == before
    for name in weights:
        save_file({**weights, name: weights[name] * 1.001}, file)
        assert digest_file(file) != before, name
    save_file({("renamed" if name == "layer" else name): weight for name, weight in weights.items()}, file)
    assert digest_file(file) != before
    whole = file.read_bytes()
    for bad in (b"", whole[:5], (2**60).to_bytes(8, "little") + whole[8:], whole[:8] + b"{" * 2000 + whole[2008:]):
        file.write_bytes(bad)
        assert digest_file(file) != before


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "average.safetensors"],
)
def test_a_checkpoint_cut_short_is_not_whole(tmp_path: Path, name: str) -> None:
    newest, older = tmp_path / "checkpoint-10", tmp_path / "checkpoint-9"
    for folder in (newest, older):
        (folder / "inner").mkdir(parents=True)
        for file in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            (folder / file).write_bytes(file.encode() * 40)
        (folder / "average.safetensors").write_bytes(b"\x08" * 900)
        mark_whole(folder, {"step": 10})
    (tmp_path / "checkpoint-best").mkdir()
    assert whole_checkpoints(tmp_path) == [older, newest]
    content = (newest / name).read_bytes()
    for damaged in (b"", content[:1], content[: len(content) // 2], content[:-1], bytes(len(content))):
        (newest / name).write_bytes(damaged)
        assert whole_checkpoints(tmp_path) == [older]
    (newest / name).unlink()
    assert whole_checkpoints(tmp_path) == [older]
    (newest / name).write_bytes(content)
    assert whole_checkpoints(tmp_path) == [older, newest]


def test_a_mark_cut_short_marks_nothing(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    mark_whole(checkpoint, {"step": 1})
    mark = (checkpoint / COMPLETE_FILE).read_text()
    for length in range(len(mark.rstrip())):
        (checkpoint / COMPLETE_FILE).write_text(mark[:length])
        assert whole_checkpoints(tmp_path) == [], mark[:length]
    for other in ("{}", '{"files": {}}', '{"files": []}', "7", '{"step": 1}'):
        (checkpoint / COMPLETE_FILE).write_text(other)
        assert whole_checkpoints(tmp_path) == [], other


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        mark_whole(folder, {"step": step})
    keep_newest(tmp_path, 0)
    assert len(whole_checkpoints(tmp_path)) == 3
    keep_newest(tmp_path, 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-10", "checkpoint-4"]


def test_a_damaged_newest_checkpoint_of_a_run_is_passed_over(resumed: TrainConfig) -> None:
    folder = Path(resumed.output_dir)
    weights = (folder / "student/model.safetensors").read_bytes()
    optimizer = folder / "checkpoint-2" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    shutil.rmtree(folder / "student")
    with Console(file=(folder / "said").open("w"), width=200).file as said:
        run_training(resumed, console=Console(file=said, width=200))
    told = (folder / "said").read_text()
    assert "not whole, and removed: checkpoint-2" in told
    assert "goes on from checkpoint-1" in told
    assert (folder / "student/model.safetensors").read_bytes() == weights
    assert [path.name for path in whole_checkpoints(folder)] == ["checkpoint-1", "checkpoint-2"]
    assert json.loads((folder / "student/dopd.json").read_text())["step"] == 2
