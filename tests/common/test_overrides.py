"""An option changes what it names and nothing else, at any depth, in every command that takes settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.planning.config import PlanConfig
from dopd_vl.studies.config import StudyConfig, unfold
from dopd_vl.train_config import TrainConfig
from privileged.prepare.config import PrepareConfig
from tests.commands import dopd_vl

REGIMES = {"beta_weak": 0.5, "regimes": {"LL": {"enabled": True, "source": "teacher"}}}
CASES: dict[str, tuple[str, dict[str, Any], list[str], str, Any]] = {
    "train": (
        "train",
        {"objective": {"name": "dopd", "settings": REGIMES}},
        ["--objective.settings.regimes.LL.enabled", "false", "--objective.settings.regimes.HS.enabled=false"],
        "objective.settings",
        {
            "beta_weak": 0.5,
            "regimes": {"LL": {"enabled": False, "source": "teacher"}, "HS": {"enabled": False}},
        },
    ),
    "train, numbers and texts": (
        "train",
        {"trl": {"a": {"b": 1}}},
        ["--trl.a.c", "1e-3", "--trl.a.d.e", "[1, two]", "--trl.f", "3e-4x"],
        "trl",
        {"a": {"b": 1, "c": 0.001, "d": {"e": [1, "two"]}}, "f": "3e-4x"},
    ),
    "train, whole": (
        "train",
        {"objective": {"settings": REGIMES}},
        [
            "--objective.settings.beta_weak",
            "0.1",
            "--objective.settings",
            "{top_k: 8}",
            "--objective.settings.tail",
            "drop",
        ],
        "objective.settings",
        {"top_k": 8, "tail": "drop"},
    ),
    "plan": (
        "plan",
        {"objective": {"name": "dopd", "settings": REGIMES}},
        ["--objective.settings.regimes.LL.source", "student", "--objective.settings.beta_light", "0.3"],
        "objective.settings",
        {"beta_weak": 0.5, "regimes": {"LL": {"enabled": True, "source": "student"}}, "beta_light": 0.3},
    ),
    "prepare": (
        "prepare",
        {"output": "x", "source": {"kind": "nano", "options": {"world": "text", "size": 16, "seed": 0}}},
        ["--source.options.size", "32", "--source.options.split", "heldout"],
        "source.options",
        {"world": "text", "size": 32, "seed": 0, "split": "heldout"},
    ),
    "evaluate": (
        "evaluate",
        {"chat_template_kwargs": {"a": {"b": 1}}},
        ["--chat_template_kwargs.enable_thinking", "false", "--chat_template_kwargs.a.c", "2"],
        "chat_template_kwargs",
        {"a": {"b": 1, "c": 2}, "enable_thinking": False},
    ),
    "study": (
        "study",
        {"name": "x", "settings": {"model.student": "here", "training.max_steps": 5}, "cells": {"a 0.5": {}}},
        ["--settings.training.max_steps", "25", "--settings.training.learning_rate", "1e-3"],
        "settings",
        {"model.student": "here", "training.max_steps": 25, "training.learning_rate": 0.001},
    ),
    "study, settings as a mapping": (
        "study",
        {"settings": {"model.student": "here"}},
        ["--settings", "{training.max_steps: 25}"],
        "settings",
        {"model.student": "here", "training.max_steps": 25},
    ),
    "study, cells": (
        "study",
        {"cells": {"a 0.5": {"objective.name": "opd"}, "b": {}}},
        ["--cells.a 0.5.objective.settings.divergence", "js", "--cells.c.objective.name", "dopd"],
        "cells",
        {
            "a 0.5": {"objective.name": "opd", "objective.settings.divergence": "js"},
            "b": {},
            "c": {"objective.name": "dopd"},
        },
    ),
    "study, data": (
        "study",
        {"data": {"train": {"kind": "nano", "options": {"world": "text", "size": 16}}}},
        ["--data.train.options.size", "8", "--grid.training.learning_rate", "[0.1]", "--score.it", "5"],
        "data",
        {"train": {"kind": "nano", "options": {"world": "text", "size": 8}}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_options_change_what_they_name_alone(case: str, tmp_path: Path) -> None:
    command, given, options, key, expected = CASES[case]
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    done = dopd_vl(command, "--config", file, *options, "--print_config")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    for name in key.split("."):
        found = found[name]
    assert found == expected


def test_settings_of_two_files_add_up_and_other_keys_take_the_place(tmp_path: Path) -> None:
    world, question = tmp_path / "world.yaml", tmp_path / "question.yaml"
    world.write_text(
        yaml.safe_dump({"settings": {"model.student": "here", "training.max_steps": 5}, "cells": {"a": {}}})
    )
    question.write_text(yaml.safe_dump({"settings": {"training.max_steps": 7}, "cells": {"b": {}}}))
    config = read_config(StudyConfig, ["--config", str(world), "--config", str(question)], "test")
    assert config.settings == {"model.student": "here", "training.max_steps": 7}
    assert config.cells == {"b": {}}


def test_a_cell_changes_one_key_of_a_mapping_that_all_cells_have() -> None:
    cells = {"a": {"objective.settings.regimes.LL.enabled": False}, "b": {"objective.settings": {"top_k": 8}}}
    settings = {"objective.settings.top_k": 16, "objective.settings.regimes": {"LL": {"source": "teacher"}}}
    a, b = unfold(StudyConfig(output_dir="out", settings=settings, cells=cells, seeds=[0]))
    assert a.stages[0][1].objective.settings == {
        "top_k": 16,
        "regimes": {"LL": {"source": "teacher", "enabled": False}},
    }
    assert b.stages[0][1].objective.settings == {"top_k": 8}


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (TrainConfig, ["--trl.a.b"], "--trl.a.b: a value is missing"),
        (TrainConfig, ["--trl.a", ".nan"], "trl: a value cannot be used"),
        (StudyConfig, ["--settings", "3"], "settings"),
        (StudyConfig, ["--cells.a", "3"], "cells"),
        (PlanConfig, ["--objective.setings.x", "3"], "objective.settings"),
        (PrepareConfig, ["--source.option.x", "3"], "source.options"),
        (EvaluateConfig, ["--chat_template_kwarg.x", "3"], "chat_template_kwargs"),
    ],
)
def test_what_cannot_be_is_named(cls: type, options: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_config(cls, options, "test")
