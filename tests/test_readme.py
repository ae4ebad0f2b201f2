"""What the README says to type is typed here, with fewer steps; CI types its two `make` commands."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip()
]
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
        "--data", "{train: {kind: nano, options: {size: 4}}}", "--score", "{}",
    ],
}  # fmt: skip


def test_the_readme_has_its_two_commands() -> None:
    assert COMMANDS[:2] == ["make quickstart", "make test"]


def test_the_cpu_commands_work_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    typed = [shlex.split(command) for command in COMMANDS if command.startswith("dopd-vl ")]
    assert [words[1] for words in typed] == ["prepare", "prepare", "train", "evaluate", "study"]
    for words in typed:
        command = [sys.executable, "-m", "dopd_vl.cli", *words[1:], *SMALL[words[1]]]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, f"{words}: {result.stderr}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "accelerate launch" in c])
def test_the_gpu_commands_are_sound_but_for_the_gpu(command: str) -> None:
    words = shlex.split(command)
    arguments = words[words.index("dopd_vl.cli") + 1 :]
    printed = subprocess.run(
        [sys.executable, "-m", "dopd_vl.cli", *arguments, "--print_config"], capture_output=True, text=True, cwd=ROOT
    )
    assert printed.returncode == 0, printed.stderr
    assert "Qwen/Qwen3-VL-2B-Instruct" in printed.stdout


def test_every_link_of_the_readme_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_the_python_example_names_what_there_is() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        for alias in node.names:
            assert hasattr(importlib.import_module(str(node.module)), alias.name), alias.name
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = {node.func.id: node for node in nodes if isinstance(node.func, ast.Name)}
    fields = {field.name for field in dataclasses.fields(importlib.import_module("dopd_vl").DopdConfig)}
    assert {keyword.arg for keyword in calls["DopdConfig"].keywords} <= fields
    accepted = inspect.signature(importlib.import_module("dopd_vl").DopdTrainer).parameters
    assert {keyword.arg for keyword in calls["DopdTrainer"].keywords} <= set(accepted)
