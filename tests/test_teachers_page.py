"""docs/teachers.md: the server's command, the plan and the launcher agree with the configuration; the rest is typed."""

import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from dopd_vl.commands.plan import main as plan
from dopd_vl.common.configuration import read_config
from dopd_vl.common.files import read_jsonl
from dopd_vl.common.resources import find_model
from dopd_vl.common.run_layout import METRICS_FILE
from dopd_vl.objectives.build import build_objective
from dopd_vl.train_config import TrainConfig
from dopd_vl.training.teachers import served_needs
from tests.commands import ROOT
from tests.pages import blocks_of, commands_of, type_in, write_files
from tests.teacher_server import TeacherServer

PAGE = "docs/teachers.md"
COMMANDS = [shlex.split(command) for command in commands_of(PAGE)]
SMALL = {
    "prepare": ["--limit", "12"],
    "train": [
        "--training.max_steps", "2", "--training.eval_steps", "2", "--training.save_steps", "2",
        "--training.per_device_train_batch_size", "6", "--training.max_completion_length", "6",
        "--data.eval_size", "4",
    ],
}  # fmt: skip
ADDRESS = "http://localhost:8000"


def command_with(*words: str) -> list[str]:
    (found,) = [command for command in COMMANDS if set(words) <= set(command)]
    return found


def devices(command: list[str]) -> list[str]:
    return command[0].removeprefix("CUDA_VISIBLE_DEVICES=").split(",")


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_plan_of_the_page_fits_and_asks_nobody() -> None:
    assert plan(command_with("dopd-vl", "plan")[2:]) == 0


def test_the_servers_and_the_run_share_the_machine_and_the_servers_give_what_the_run_asks_for() -> None:
    vllm, launch = command_with("vllm", "serve"), command_with("accelerate")
    sglang = command_with("sglang.launch_server")
    at = launch.index("accelerate")
    launcher = launch_command_parser().parse_args(launch[at + 2 :])
    assert (ROOT / launcher.config_file).is_file()
    assert launcher.num_processes == len(devices(launch)) == int(command_with("plan", "dopd-vl")[-1].partition("x")[0])
    assert sorted([*devices(vllm), *devices(launch)]) == [str(gpu) for gpu in range(8)]
    config = read_config(TrainConfig, launch[launch.index("dopd_vl.cli") + 2 :], "test")
    loop, longest = config.training, config.data.max_prompt_length
    assert longest is not None
    needs = served_needs(
        build_objective(config.objective.name, config.objective.settings),
        loop.num_generations,
        loop.logged_top_k,
        151_936,
    )
    assert needs.cut
    assert int(option(vllm, "--max-logprobs")) == needs.top_k
    assert "--enable-scale-out" in vllm
    for server, length, parallel in ((vllm, "--max-model-len", "--tensor-parallel-size"),
                                     (sglang, "--context-length", "--tp-size")):  # fmt: skip
        assert int(option(server, length)) > longest + loop.max_completion_length
        assert int(option(server, parallel)) == len(devices(server)) == 2
        assert config.model.teacher == f"http://localhost:{option(server, '--port')}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's data sets were prepared and its files saved."""
    folder = tmp_path_factory.mktemp("page")
    for command in COMMANDS:
        if command[:2] == ["dopd-vl", "prepare"]:
            type_in(folder, shlex.join(command), *SMALL["prepare"])
    write_files(folder, PAGE)
    return folder


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[:2] == ["dopd-vl", "train"]], ids=shlex.join)
def test_the_runs_of_the_page_run(command: list[str], world: Path, tmp_path: Path) -> None:
    if any("quantization" in word or "teachers.yaml" in word for word in command):
        pytest.importorskip("bitsandbytes")
    server = TeacherServer(Path(find_model("nano:text-teacher")))
    try:
        teachers = world / "teachers.yaml"
        shown = teachers.read_text(encoding="utf-8")
        teachers.write_text(shown.replace(ADDRESS, server.address), encoding="utf-8")
        words = [word.replace(ADDRESS, server.address) for word in command]
        run = tmp_path / "run"
        type_in(world, shlex.join(words), *SMALL["train"], "--output_dir", str(run))
        rows = [row for row in read_jsonl(run / METRICS_FILE) if "loss" in row]
        assert len(rows) == 2
        is_served = "teacher_wait_seconds" in rows[-1]
        assert is_served == bool(server.scored()) == (ADDRESS in command or "teachers.yaml" in command)
        named = {
            key.removeprefix("token_share/teacher:")
            for row in rows
            for key in row
            if key.startswith("token_share/teacher:")
        }
        assert named == ({"default", "stories", "choices"} if "teachers.yaml" in command else set())
    finally:
        teachers.write_text(shown, encoding="utf-8")
        server.close()


def test_the_python_of_the_page_trains(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks_of(PAGE, "python")
    server = TeacherServer(Path(find_model("nano:text-teacher")))
    small = "max_steps=1, per_device_train_batch_size=4, max_completion_length=6, use_cpu=True, report_to=[]"
    replaced = {
        "Qwen/Qwen3-1.7B": str(find_model("nano:text-student")),
        "Qwen/Qwen3-8B": str(find_model("nano:text-teacher")),
        ADDRESS: server.address,
        "num_generations=4": f"num_generations=4, {small}",
        "runs/two-teachers": str(tmp_path / "run"),
    }
    for shown, real in replaced.items():
        assert shown in code
        code = code.replace(shown, real)
    monkeypatch.chdir(world)
    try:
        names: dict[str, object] = {}
        exec(compile(code, PAGE, "exec"), names)
        assert names["trainer"].state.global_step == 1  # type: ignore[attr-defined]
        assert server.scored()
    finally:
        server.close()
