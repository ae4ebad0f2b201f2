"""docs/plan.md: its commands are sound, its table is the measured one."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from dopd_vl.commands.plan import main
from dopd_vl.common.configuration import read_config
from dopd_vl.common.resources import find_config
from dopd_vl.train_config import TrainConfig
from tests.pages import ROOT, commands_of, text_of

PAGE = text_of("docs/plan.md")
COMMANDS = commands_of("docs/plan.md")
PLANS = [command for command in COMMANDS if command.startswith("dopd-vl plan")]
LAUNCHES = [command for command in COMMANDS if command not in PLANS]


@pytest.mark.parametrize("command", PLANS)
def test_the_plans_on_the_page_are_made(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[2:]) == 0
    assert "It fits" in capsys.readouterr().out


@pytest.mark.parametrize("command", LAUNCHES)
def test_the_launchers_on_the_page_take_their_options_and_the_run_its_own(command: str) -> None:
    words = [{"$RANK": "1", "$FIRST": "10.0.0.1"}.get(w, w).replace("$FIRST", "10.0.0.1") for w in shlex.split(command)]
    at = words.index("dopd_vl.cli")
    if words[0] == "accelerate":
        launcher = launch_command_parser().parse_args(words[2:])
        assert (ROOT / launcher.config_file).is_file()
    else:
        from torch.distributed.run import get_args_parser

        launcher = get_args_parser().parse_args(words[1:])
        assert launcher.module
    assert words[at + 1] == "train"
    config = read_config(TrainConfig, words[at + 2 :], "test")
    machines = 2 if "2" in words[:at] else 1
    loop = config.training
    assert loop.per_device_train_batch_size * loop.gradient_accumulation_steps * 8 * machines == 128


def test_the_page_shows_the_measured_table() -> None:
    results = ROOT / "benchmarks" / "results"
    assert (results / "memory.md").read_text().strip() in PAGE
    report = json.loads((results / "memory.json").read_text())
    assert report["machine"] in PAGE


def test_the_configurations_of_the_page_exist() -> None:
    table = PAGE.split("## The shipped configurations")[1].split("A later")[0]
    for cell in re.findall(r"^\| (`.*?) \|", table, re.M):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            folder = name.rpartition("/")[0] or folder
            find_config(name if "/" in name or name == "lora" else f"{folder}/{name}")


def test_a_small_run_is_predicted_as_it_is_measured_here(tmp_path: Path) -> None:
    output = tmp_path / "memory"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--sizes", "small", "--ways", "all weights"]
    done = subprocess.run(
        [*command, "--threads", "1", "--output", str(output)], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert 0.8 <= row["predicted"] / row["measured"] <= 1.2, row
