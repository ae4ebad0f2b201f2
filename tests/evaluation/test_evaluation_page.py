"""docs/evaluation.md: its commands run, its tables are whole, and the configs that it names parse."""

import re
from pathlib import Path

import pytest

from dopd_vl.commands.evaluate import default_folders
from dopd_vl.common.configuration import read_config
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.evaluation.verifiers import VERIFIERS
from dopd_vl.harnesses.table import benchmarks, benchmarks_of, harnesses
from tests.pages import ROOT, commands_of, text_of, type_in

PAGE = text_of("docs/evaluation.md")
SMALL = {"prepare": ["--limit", "6"], "evaluate": ["--size", "4", "--max_new_tokens", "6"]}


def test_the_commands_run_one_after_another(tmp_path: Path) -> None:
    for command in commands_of("docs/evaluation.md"):
        if "--dry_run" in command:
            type_in(tmp_path, command)
        else:
            type_in(tmp_path, command, *SMALL[command.split()[1]])
    assert (tmp_path / "runs" / "evaluate" / "text-student-nano-text-heldout" / "scores.json").is_file()
    assert (tmp_path / "runs" / "evaluate" / "qwen3-vl-paper-vlm" / "commands.sh").is_file()


def test_the_tables_name_every_task_benchmark_and_version() -> None:
    for task in VERIFIERS:
        assert f"| `{task}` |" in PAGE
    for name in benchmarks():
        assert re.search(rf"^\| .*\b{re.escape(name)}\b", PAGE, re.MULTILINE), name
    for name, harness in harnesses().items():
        version = harness.version[:8] if harness.checkout else harness.version
        assert re.search(rf"^\| {name} {re.escape(version)} \|", PAGE, re.MULTILINE | re.IGNORECASE), name


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "evaluate").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_parse_and_stand_on_the_page(file: Path) -> None:
    config = read_config(EvaluateConfig, ["--config", f"evaluate/{file.stem}", "--model", "a/b"], "test")
    if config.suite:
        assert benchmarks_of(config.suite)
    else:
        assert config.sampling.temperature == 0.7
        config.data = "somewhere"
    config.check()
    assert f"evaluate/{file.stem}" in PAGE


def test_folders_are_called_after_the_run_and_what_is_scored() -> None:
    def folders(**settings: str) -> list[str]:
        return [str(folder) for folder in default_folders(EvaluateConfig(**settings)).values()]

    one = {"model": "runs/dopd/student", "data": "data/heldout/"}
    assert folders(**one) == ["runs/evaluate/dopd-heldout"]
    assert folders(**one, variant="hints") == ["runs/evaluate/dopd-heldout-hints"]
    assert folders(**one, output_dir="out") == ["out"]
    two = one | {"model": "runs/dopd/seed-0/student, runs/opd/seed-0/student"}
    assert folders(**two) == ["runs/evaluate/dopd-seed-0-heldout", "runs/evaluate/opd-seed-0-heldout"]
    assert folders(**two, output_dir="out") == ["out/dopd-seed-0-heldout", "out/opd-seed-0-heldout"]
    assert folders(model="a/B", suite="MMMU,AIME25") == ["runs/evaluate/B-MMMU+AIME25"]
