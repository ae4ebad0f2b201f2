"""The job script and the image recipe of docs/cluster.md: parsed, and the script run with stand-ins for Slurm.

What docs/journeys/eight-gpus.md submits is submitted here, too.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import dockerfile
import pytest
from accelerate.commands.launch import launch_command_parser

from dopd_vl.commands.plan import main as plan
from dopd_vl.common.configuration import read_config
from dopd_vl.train_config import TrainConfig
from tests.pages import ROOT, commands_of, write_files

CLUSTER = ROOT / "examples" / "cluster"
SCRIPT, RECIPE = CLUSTER / "train.sbatch", CLUSTER / "Dockerfile"
COMMANDS = commands_of("docs/cluster.md")
JOURNEY = "docs/journeys/eight-gpus.md"
INSTRUCTIONS = {"FROM", "RUN", "ARG", "ENV", "COPY", "USER", "WORKDIR", "CMD"}
STAND_INS = {
    # One task a machine, each with its own rank.
    "srun": 'shift\nfor SLURM_NODEID in $(seq 0 $((SLURM_NNODES - 1))); do export SLURM_NODEID; "$@"; done',
    "scontrol": '[ "$1" = show ] && printf "alpha\\nbeta\\n" || echo "$@" >> scontrol.txt',
    "accelerate": 'printf "%s\\0" "$@" >> launched.txt; echo >> launched.txt; sleep "${PAUSE:-0}"',
    "python": f'exec {shlex.quote(sys.executable)} "$@"',
}


def start(folder: Path, words: list[str], **environment: str) -> subprocess.Popen[str]:
    """The script under way in a folder, in a job of two machines of eight GPUs."""
    programs = folder / "bin"
    programs.mkdir()
    for name, lines in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "x[1-2]"}
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(SCRIPT), *words]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **job, **path, **environment}, text=True)


def launched(folder: Path) -> list[list[str]]:
    return [line.strip("\0").split("\0") for line in (folder / "launched.txt").read_text().splitlines()]


def test_bash_reads_the_script_and_slurm_its_head() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    text = SCRIPT.read_text()
    head, _, body = text.partition("set -euo pipefail")
    options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", head, re.MULTILINE)
    assert len(options) == len(re.findall("^#SBATCH", text, re.MULTILINE))
    assert "#SBATCH" not in body  # behind the first command Slurm reads no more of them
    assert {"--requeue", "--signal", "--nodes", "--ntasks-per-node"} <= {name for name, _ in options}


@pytest.mark.parametrize("command", [command for command in [*COMMANDS, *commands_of(JOURNEY)] if "sbatch" in command])
def test_each_machine_launches_the_run_with_its_rank_and_a_run_that_goes_on(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, JOURNEY)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    given = words[words.index("examples/cluster/train.sbatch") + 1 :]
    machines = words[words.index("--nodes") + 1] if "--nodes" in words else "2"
    way = words[0].removeprefix("WAY=") if words[0].startswith("WAY=") else "fsdp2"
    job = start(tmp_path, given, SLURM_NNODES=machines, **({"WAY": way} if way != "fsdp2" else {}))
    assert job.wait(120) == 0
    calls = launched(tmp_path)
    assert len(calls) == int(machines)
    for rank, call in enumerate(calls):
        assert call[0] == "launch"
        launcher = launch_command_parser().parse_args(call[1:])
        assert Path(launcher.config_file) == ROOT / "configs" / "accelerate" / f"{way}.yaml"
        assert (launcher.machine_rank, launcher.num_machines) == (rank, int(machines))
        assert launcher.num_processes == 8 * int(machines)
        assert (launcher.main_process_ip, launcher.main_process_port) == ("alpha", 24711)
        assert launcher.training_script == "dopd_vl.cli"
        assert launcher.module
        config = read_config(TrainConfig, launcher.training_script_args[1:], "test")
        assert launcher.training_script_args[0] == "train"
        assert config.resume
        loop = config.training
        rollouts = loop.per_device_train_batch_size * loop.gradient_accumulation_steps * launcher.num_processes
        assert rollouts == 128


def test_a_job_whose_time_is_up_goes_back_to_the_queue(tmp_path: Path) -> None:
    job = start(tmp_path, ["--config", "a folder/with a space.yaml"], PAUSE="2", SLURM_NNODES="1")
    for _ in range(600):
        if (tmp_path / "launched.txt").exists():
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    job.wait(60)
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    assert "a folder/with a space.yaml" in launched(tmp_path)[0]


def test_a_run_that_fails_fails_the_job(tmp_path: Path) -> None:
    job = start(tmp_path, [], PAUSE="no number", SLURM_NNODES="1")
    assert job.wait(120) != 0


def test_docker_reads_the_recipe_and_finds_what_it_copies() -> None:
    commands = dockerfile.parse_file(str(RECIPE))  # Docker's own parser
    assert commands[0].cmd.upper() == "FROM"
    for command in commands:
        assert command.cmd.upper() in INSTRUCTIONS, command.original  # the parser lets any word pass
        if command.cmd.upper() == "RUN":
            assert subprocess.run(["bash", "-n", "-c", *command.value]).returncode == 0, command.original
        if command.cmd.upper() == "COPY":
            assert all((ROOT / source).exists() for source in command.value[:-1]), command.original


def test_what_the_recipe_copies_is_all_that_an_installation_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    commands = dockerfile.parse_file(str(RECIPE))
    copied = {source for command in commands if command.cmd.upper() == "COPY" for source in command.value[:-1]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "pyproject.toml"} <= copied


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("docker run")])
def test_what_is_run_in_the_image_is_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    program, *given = words[words.index("dopd-vl") + 1 :]
    if program == "dopd-vl":
        assert given[0] == "plan"
        assert plan(given[1:]) == 0
        return
    assert program == "accelerate"
    launcher = launch_command_parser().parse_args(given[1:])
    linked = Path(str(launcher.config_file)).relative_to("/configs")
    assert (ROOT / "configs" / linked).is_file()
    assert read_config(TrainConfig, launcher.training_script_args[1:], "test").resume


def test_the_plan_of_the_page_fits(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [command for command in COMMANDS if command.startswith("dopd-vl plan")]
    assert plan(shlex.split(command)[2:]) == 0
