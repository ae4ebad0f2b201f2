"""A student and a prepared set go to the hub by one key, whole or not at all; no token stays anywhere."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.commands.export import ExportConfig
from dopd_vl.common.configuration import read_config
from dopd_vl.common.run_layout import CARD_FILE, FACTS_FILE
from dopd_vl.train_config import TrainConfig
from privileged import load_privileged
from privileged.prepare.config import PrepareConfig
from tests.commands import dopd_vl
from tests.hub import TOKEN, Hub, dopd_vl_at, standing_in
from tests.pages import ROOT, commands_of
from tests.training.test_nothing_to_learn import command

PUSH = ["--training.push_to_hub", "user/small", "--training.max_steps", 1]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepare_command(output: Path, *options: object) -> list[object]:
    source = ["--source.kind", "nano", "--source.options", "{world: text, split: train, size: 4, seed: 0}"]
    return ["prepare", *source, "--output", output, *options]


def test_adapters_go_to_a_private_repository_with_card_and_facts(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    hub, run = Hub(), tmp_path / "run"
    hub.there = ["model.safetensors", "notes.txt"]
    with standing_in(hub):
        done = dopd_vl_at(hub, *command(nano_models, text_data, run, "--model.lora.r", 2, *PUSH))
    assert done.returncode == 0, done.stderr
    [made] = hub.created
    assert (made["organization"], made["name"], made["visibility"]) == ("user", "small", "private")
    pushed = {path.removeprefix("models/user/small/"): content for path, content in hub.files.items()}
    assert pushed == files_below(run / "student")
    assert {CARD_FILE, FACTS_FILE, "adapter_model.safetensors", "tokenizer.json"} <= set(pushed)
    assert hub.deleted == ["model.safetensors"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    kept = b"".join(files_below(tmp_path).values()) + done.stdout.encode() + done.stderr.encode()
    assert TOKEN.encode() not in kept
    assert f"pushed to {hub.address}/user/small" in done.stdout


def test_a_push_that_is_refused_is_one_line_and_the_student_is_whole(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with standing_in(Hub(refuses="/commit/")) as hub:
        done = dopd_vl_at(hub, *command(nano_models, text_data, run, *PUSH))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: training.push_to_hub: {run / 'student'} is whole, but was not pushed to user/small")
    assert f"`hf upload user/small {run / 'student'}`" in line
    assert {CARD_FILE, FACTS_FILE, "model.safetensors"} <= set(files_below(run / "student"))
    with standing_in(Hub()) as hub:
        again = dopd_vl_at(hub, *command(nano_models, text_data, run, *PUSH, "--resume", "true"))
    assert again.returncode == 0, again.stderr
    assert f"models/user/small/{FACTS_FILE}" in hub.files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user/small", "user/small is not to be written to from here (Cannot reach"),
        ("small", "'small' is no repository of the hub; give it as user/name"),
    ],
)
def test_a_hub_out_of_reach_is_said_before_anything_is_done(
    nano_models: Path, text_data: Path, tmp_path: Path, name: str, message: str
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    for key, words in (
        ("training.push_to_hub", command(nano_models, text_data, run, "--training.push_to_hub", name)),
        ("push_to_hub", prepare_command(data, "--push_to_hub", name)),
    ):
        done = dopd_vl(*words)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert f"{key}: {message}" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_prepared_set_is_pushed_and_loads_from_what_was_pushed(tmp_path: Path) -> None:
    output, hub = tmp_path / "set", Hub()
    hub.there = ["data/train-00000-of-00009.parquet", "notes.txt"]
    with standing_in(hub):
        done = dopd_vl_at(hub, *prepare_command(output, "--push_to_hub", "user/set"))
        assert done.returncode == 0, done.stderr
        again = dopd_vl_at(hub, *prepare_command(output, "--push_to_hub", "user/other"))
    assert again.returncode == 0, again.stderr
    assert [(made["name"], made["type"], made["visibility"]) for made in hub.created] == [
        ("set", "dataset", "private"),
        ("other", "dataset", "private"),
    ]
    for path, content in hub.files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    loaded = load_privileged(tmp_path / "datasets" / "user" / "set", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == load_privileged(output, cache_dir=str(tmp_path / "cache2")).to_list()
    assert files_below(tmp_path / "datasets/user/set") == files_below(tmp_path / "datasets/user/other")
    assert hub.deleted == ["data/train-00000-of-00009.parquet"] * 2
    assert not any("sample" in path for path in hub.files)


def test_a_part_is_not_pushed(tmp_path: Path) -> None:
    done = dopd_vl(*prepare_command(tmp_path / "set", "--part", "1/2", "--push_to_hub", "user/set"))
    assert done.returncode == 2
    assert "push_to_hub: a part is no data set yet" in done.stderr


def test_the_page_s_commands_name_settings_that_there_are() -> None:
    programs: dict[str, Any] = {"prepare": PrepareConfig, "train": TrainConfig, "export": ExportConfig}
    for typed in commands_of("docs/hub.md"):
        _, program, *words = shlex.split(typed)
        found = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
        config = read_config(programs[program], found, program)
        if program == "export":
            assert config.model == "runs/nano-vision/student"
            continue
        pushed = config.push_to_hub if isinstance(config, PrepareConfig) else config.training.push_to_hub
        assert pushed.startswith("user/nano-")
