"""`dopd-vl COMMAND --help`: every key has its sentence, every command its page; and the commands that pages show."""

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.cli import COMMANDS
from dopd_vl.commands.export import ExportConfig
from dopd_vl.commands.quickstart import QuickstartConfig
from dopd_vl.common.configuration import _parser, read_config
from dopd_vl.common.resources import find_config
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.planning.config import PlanConfig
from dopd_vl.studies.config import StudyConfig
from dopd_vl.train_config import LoraSettings, TeacherSettings, TrainConfig
from privileged.annotators.settings import AnnotateConfig
from privileged.audit.audit import JudgeConfig
from privileged.prepare.config import PrepareConfig
from tests.pages import ROOT, commands_of, write_files

CONFIGS = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "study": StudyConfig,
    "quickstart": QuickstartConfig,
    "plan": PlanConfig,
    "train, --model.lora": LoraSettings,
    "train, model.teachers.NAME": TeacherSettings,
    "prepare, --annotate": AnnotateConfig,
    "prepare, --audit.model": JudgeConfig,
}
"""What is read by jsonargparse; the sections that may be null have a help of their own."""


def keys_of(parser: Any) -> Iterator[tuple[str, str]]:
    """The options with their texts, but for those that print something and end."""
    for action in parser._actions:
        name = action.option_strings[0] if action.option_strings else action.dest
        if action.nargs != 0 and name != "--print_config" and not name.endswith(".help"):
            yield name, action.help or ""


def parsers() -> Iterator[tuple[str, Any]]:
    for name, config in CONFIGS.items():
        yield name, _parser(config, name)
    for name in ("report", "configs"):
        yield name, importlib.import_module(COMMANDS[name][0])._parser()


KEYS = [(name, key, text) for name, parser in parsers() for key, text in keys_of(parser)]


def test_every_command_is_looked_at() -> None:
    assert {name for name, _, _ in KEYS} >= {*COMMANDS}


@pytest.mark.parametrize(("command", "key", "text"), KEYS, ids=lambda value: value if value.startswith("-") else "")
def test_every_key_says_in_a_sentence_what_it_does(command: str, key: str, text: str) -> None:
    said = re.sub(r" \((required, )?type: .*", "", text)
    assert re.match(r"[A-Z]", said), f"{command} {key}: begins like a fragment: {said!r}"
    assert said.endswith("."), f"{command} {key}: does not end: {said!r}"
    assert len(re.findall(r"[A-Za-z]{2,}", said)) >= 3, f"{command} {key}: hardly a sentence: {said!r}"
    pairs = [said.count(sign) for sign in "()[]{}"]
    assert pairs[::2] == pairs[1::2], f"{command} {key}: a bracket is left open: {said!r}"
    assert not re.search(r"\bNone\b|\bself\.|->|`SEVERITIES`", said), f"{command} {key}: is about code: {said!r}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_page_that_tells_more(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS[command][0]).main(["--help"])
    described = capsys.readouterr().out.partition("\n\n")[2].split("\n\n")[0]
    assert len(described.split()) > 5
    (page,) = re.findall(r"(?:See |and )(\S+\.md)\.$", " ".join(described.split()))
    assert (ROOT / page).is_file()


@pytest.mark.parametrize(
    ("command", "section", "key"),
    [("prepare", "annotate", "recheck"), ("prepare", "audit.model", "ask"), ("train", "model.lora", "alpha")],
)
def test_a_section_that_may_be_null_has_the_help_that_is_promised(
    command: str, section: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(COMMANDS[command][0]).main([f"--{section}.help"])
    assert end.value.code == 0
    assert f"--{section}.{key}" in capsys.readouterr().out


SHOWN = sorted(
    {
        (page, command.partition("  #")[0].strip())
        for page in ("README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
        for command in commands_of(page)
        if command.startswith("dopd-vl ")
    }
    | {
        (str(path.relative_to(ROOT)), line.lstrip("# "))
        for path in (ROOT / "configs").rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match("# *dopd-vl ", line)
    }
)
OF_THE_READER = ("set.yaml", "signs.yaml")
"""Files of the reader's own, which their pages do not show under these names; one that ships stands in for each."""


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=lambda value: value[:60])
def test_every_command_that_is_shown_is_one(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are there, and its values of their types; many are typed elsewhere, and what needs a GPU is not."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if page.endswith(".md"):
        write_files(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    _, name, *words = shlex.split(command)
    if name == "report":
        importlib.import_module(COMMANDS[name][0])._parser().parse_args(words)
        return
    for option, file in pairwise(words):
        if option == "--config" and file in OF_THE_READER:
            shutil.copy(find_config("prepare/jsonl"), file)
    read_config(CONFIGS[name], words, "dopd-vl")
