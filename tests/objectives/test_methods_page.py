"""The page that explains the methods says what the code does."""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest
import yaml
from helpers import sampled

from dopd_vl.common.configuration import read_config, settings_of
from dopd_vl.core import Regime
from dopd_vl.objectives import OBJECTIVES, Dopd
from dopd_vl.objectives.base import Requirements
from dopd_vl.objectives.common import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER
from dopd_vl.train_config import TrainConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
ROWS = {
    cells[1].strip("` "): cells
    for line in PAGE.partition("## The systems")[2].partition("### What each logs")[0].splitlines()
    if line.startswith("| `") and len(cells := re.split(r"(?<!\\)\|", line)) == 8
}


def test_the_table_has_every_objective():
    assert set(ROWS) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_gives_defaults_and_needs_as_they_are(name: str):
    objective = OBJECTIVES[name]()
    defaults, needs = ROWS[name][5], ROWS[name][6]
    shown = re.findall(r"`(\w+): ([^`]+)`", defaults)
    known = {f.name for f in dataclasses.fields(objective)}  # type: ignore[arg-type]
    assert {setting for setting, _ in shown} <= known
    assert shown
    for setting, value in shown:
        assert getattr(objective, setting) == yaml.safe_load(value), setting
    requirements = Requirements.of(objective)
    assert ("siblings" in needs) == (requirements.needs_siblings > 1)
    assert ("verifier" in needs) == requirements.needs_verifier
    assert ("images" in needs) == requirements.needs_images
    assert ("average" in needs) == any(source.policy == "average" for source in objective.sources())


def test_the_rollout_on_the_page_is_routed_as_it_says():
    lines = PAGE.partition("## What the open proposal for TRL changes")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| \d \|", line)]
    assert len(rows) == 6
    q_T, q_S, plain = ([float(row[column]) for row in rows] for column in (1, 2, 3))
    scores = sampled({PRIVILEGED_TEACHER: [q_T], PRIVILEGED_STUDENT: [q_S]}, [[1] * 6])
    regimes = Dopd(trim_fraction=0.0).decide(scores).per_token["regime"][0].tolist()
    assert [Regime(regime).name for regime in regimes] == [row[4] for row in rows]
    for q, s, row in zip(q_T, plain, rows, strict=True):
        sure = max(q, s) >= 0.5
        if abs(math.log(q / s)) >= 2.0:
            assert sure
            assert row[6] == ("HT" if q >= s else "HS")
        else:
            assert row[6] == ("LH" if sure else "LL")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example["objective"]))
def test_every_example_is_a_configuration(example: dict, tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(example))
    config = read_config(TrainConfig, ["--config", str(file)], "dopd-vl train")
    assert config.objective.settings == example["objective"].get("settings", {})
    settings_of(OBJECTIVES[config.objective.name], config.objective.settings, "objective.settings")


def test_every_command_gives_the_settings_it_shows():
    commands = re.findall(r"^dopd-vl train (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        arguments = [argument.strip("'") for argument in re.findall(r"'[^']*'|\S+", command)]
        arguments[1] = str(ROOT / arguments[1])
        objective = read_config(TrainConfig, arguments, "dopd-vl train").objective
        assert (objective.name, objective.settings) == ("exopd", {"lam": 1.5})


def test_every_logged_name_is_on_the_page():
    files = {inspect.getsourcefile(cls) or "" for cls in OBJECTIVES.values()}
    source = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
    logged = set(re.findall(rf'"((?:gap|{"|".join(OBJECTIVES)})/\w+)"', source))
    assert len(logged) > 15
    assert {name for name in logged if f"`{name}`" not in PAGE} == set()
