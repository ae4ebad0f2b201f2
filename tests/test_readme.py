"""What the README says to type is typed here, with fewer steps; CI types its two `make` commands."""

import ast
import dataclasses
import importlib
import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks_of, commands_of, type_in

COMMANDS = commands_of("README.md")
PYTHON = blocks_of("README.md", "python")
SMALL = {
    "prepare": ["--limit", "8"],
    "train": [
        "--training.max_steps", "2", "--training.eval_steps", "2", "--training.save_steps", "2",
        "--training.per_device_train_batch_size", "2", "--training.max_completion_length", "6",
        "--data.eval_size", "4",
    ],
    "evaluate": ["--size", "4", "--max_new_tokens", "6"],
    "study": [
        "--seeds", "[0]", "--cells", "{vanilla OPD: {objective.name: opd}}", "--settings",
        "{data.train: study:train, data.eval: study:train, training.max_steps: 2, training.eval_steps: 2, "
        "training.save_steps: 2, training.per_device_train_batch_size: 2, training.max_completion_length: 6}",
        "--data", "{train: {kind: nano, options: {size: 4}}, tuning: {kind: nano, options: {size: 4, seed: 1}}}",
        "--score", "{}", "--tune_values.training.learning_rate", "[0.001]",
    ],
}  # fmt: skip


def test_ci_finds_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f'readme_command "{command}"' in script for command in COMMANDS[:2])


def test_the_cpu_commands_work_one_after_another(tmp_path: Path) -> None:
    typed = [command for command in COMMANDS if command.startswith("dopd-vl ")]
    assert {command.split()[1] for command in typed} == set(SMALL)
    for command in typed:
        type_in(tmp_path, command, *SMALL[command.split()[1]])


@pytest.mark.parametrize("command", [c for c in COMMANDS if "accelerate launch" in c])
def test_the_gpu_commands_are_sound_but_for_the_gpu(command: str) -> None:
    words = shlex.split(command)
    arguments = words[words.index("dopd_vl.cli") + 1 :]
    printed = subprocess.run(
        [sys.executable, "-m", "dopd_vl.cli", *arguments, "--print_config"], capture_output=True, text=True, cwd=ROOT
    )
    assert printed.returncode == 0, printed.stderr
    assert "Qwen/Qwen3-VL-2B-Instruct" in printed.stdout


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_examples_import_what_there_is(code: str) -> None:
    imports = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        for alias in node.names:
            assert hasattr(importlib.import_module(str(node.module)), alias.name), alias.name


def test_the_python_example_names_settings_that_there_are() -> None:
    (code,) = (code for code in PYTHON if "DopdTrainer(" in code)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    calls = {node.func.id: node for node in nodes if isinstance(node.func, ast.Name)}
    fields = {field.name for field in dataclasses.fields(importlib.import_module("dopd_vl").DopdConfig)}
    assert {keyword.arg for keyword in calls["DopdConfig"].keywords} <= fields
    accepted = inspect.signature(importlib.import_module("dopd_vl").DopdTrainer).parameters
    assert {keyword.arg for keyword in calls["DopdTrainer"].keywords} <= set(accepted)
