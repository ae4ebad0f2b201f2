"""How a study unfolds into runs, and what it refuses."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.nano.source import NanoSource
from dopd_vl.studies.config import StudyConfig, check, expand, unfold
from dopd_vl.studies.results import paper_column
from dopd_vl.studies.run import best_titles, score_sets

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs" / "study").glob("*.yaml"))
PRETRAINED = ROOT / "configs" / "study" / "worlds" / "smollm2.yaml"
"""A world with a question of its own."""
WORLDS = sorted(set((ROOT / "configs" / "study" / "worlds").glob("*.yaml")) - {PRETRAINED})
MAP = ROOT / "configs" / "study" / "map"
ONLY_FOR = {
    "text-variants": {"nano-text", "qwen3"},
    "text-variants-anchored": {"nano-text", "qwen3"},
    "illusion-dose": {"nano-text", "qwen3"},
    "vision-variants": {"nano-vision", "qwen3-vl"},
    "vision-methods": {"nano-vision", "qwen3-vl"},
    "pairs": {"qwen3"},
}
MAP_ONLY_FOR = {"text-variants": {"text"}, "vision-variants": {"vision"}}
MAP_QUESTIONS = [file for file in sorted(MAP.glob("*.yaml")) if not file.stem.endswith("-world")]


def study(**settings: Any) -> StudyConfig:
    return StudyConfig(**{"output_dir": "out", "cells": {"a": {"objective.name": "opd"}, "b": {}}, **settings})


def test_grid_crosses_cells_in_the_order_of_the_file() -> None:
    config = study(grid={"objective.settings.beta_weak": [0.1, 0.3], "training.learning_rate": [1e-4]})
    names = [cell.name for cell in expand(config)]
    assert names == [f"{cell} beta_weak={weak} learning_rate=0.0001" for cell in "ab" for weak in (0.1, 0.3)]


def test_runs_come_seed_by_seed_each_with_its_own_folder_and_seed() -> None:
    runs = unfold(study(seeds=[0, 5]))
    assert [(run.cell.name, run.seed) for run in runs] == [("a", 0), ("b", 0), ("a", 5), ("b", 5)]
    assert len({run.folder for run in runs}) == 4
    for run in runs:
        ((_, config),) = run.stages
        assert (config.seed, config.output_dir, config.resume) == (run.seed, str(run.folder), True)
    assert runs[0].stages[0][1].objective.name == "opd"


def test_each_stage_begins_from_the_student_of_the_one_before() -> None:
    stages = {"general": {"data.train": "study:one"}, "coding": {"data.train": "elsewhere"}}
    data = {"one": {"kind": "nano", "options": {}}}
    config = study(stages=stages, data=data, cells={"a": {"model.student": "nano:text-student"}})
    first, second = (stage for _, stage in unfold(config)[0].stages)
    assert first.model.student == "nano:text-student"
    assert second.model.student == f"{first.output_dir}/student"
    assert (first.data.train, second.data.train) == ("out/data/one", "elsewhere")


RATES = {
    "tune": ["training.learning_rate"],
    "tune_values": {"training.learning_rate": [1e-4, 1e-3], "objective.settings.beta_weak": [0.1]},
    "tune_on": "tuning",
    "data": {"tuning": "tuning-folder"},
    "score": {"held-out": "held-out-folder"},
}


def test_every_value_that_is_tuned_is_a_run_of_its_own_compared_with_the_baseline_whatever_its_value() -> None:
    runs = check(study(seeds=[3, 4], baseline="b", **RATES))
    assert [(run.cell.title, run.seed) for run in runs] == [
        (f"{name} learning_rate={rate}", seed) for seed in (3, 4) for name in "ab" for rate in (0.0001, 0.001)
    ]
    assert [run.stages[0][1].training.learning_rate for run in runs] == [1e-4, 1e-3] * 4
    assert {(run.cell.name, run.cell.baseline) for run in runs} == {("a", "b"), ("b", "b")}
    assert len({run.folder for run in runs}) == 8


def test_a_cell_that_gives_a_tuned_key_is_run_with_its_own_value_alone() -> None:
    cells = expand(study(cells={"a": {}, "b": {"training.learning_rate": 1e-2}}, **RATES))
    assert [cell.title for cell in cells] == [
        *(f"a learning_rate={rate}" for rate in (0.0001, 0.001)),
        "b learning_rate=0.01",
    ]
    runs = check(study(seeds=[0], cells={"b": {"training.learning_rate": 1e-2}}, **RATES))
    assert [(run.stages[0][1].training.learning_rate, run.cell.tuned) for run in runs] == [
        (1e-2, {"training.learning_rate": 1e-2})
    ]


def test_a_grid_and_tuned_values_are_told_apart() -> None:
    config = study(grid={"objective.settings.beta_weak": [0.1, 0.3]}, cells={"a": {}}, baseline="a", **RATES)
    cells = expand(config)
    assert [cell.title for cell in cells] == [
        f"a beta_weak={weak} learning_rate={rate}" for weak in (0.1, 0.3) for rate in (0.0001, 0.001)
    ]
    assert {(cell.name, cell.baseline) for cell in cells} == {
        (f"a beta_weak={w}", f"a beta_weak={w}") for w in (0.1, 0.3)
    }


def test_only_the_first_seed_is_scored_on_what_is_tuned_on() -> None:
    config = study(seeds=[3, 4], **RATES)
    first, *_, last = check(config)
    assert score_sets(config, first) == {"held-out": ("held-out-folder", None), "tuning": ("tuning-folder", None)}
    assert score_sets(config, last) == {"held-out": ("held-out-folder", None)}


def test_the_best_on_the_tuning_set_is_chosen_and_none_before_all_are_scored() -> None:
    config = study(seeds=[0], **RATES)
    tried = check(config)

    def scores(*accuracies: float | None) -> dict[Path, dict[str, Any]]:
        found = {}
        for run, right in zip(tried, accuracies, strict=False):
            held_out = None if right is None else 1 - right
            found[run.folder] = {
                "student": {"held-out": {"none": {"accuracy": held_out}}, "tuning": {"none": {"accuracy": right}}}
            }
        return found

    best = best_titles(config, tried, scores(0.2, 0.7, 0.5, 0.5))
    assert best == {"a": "a learning_rate=0.001", "b": "b learning_rate=0.0001"}
    assert best_titles(config, tried, scores(0.2, 0.7, 0.9)) == {"a": "a learning_rate=0.001"}, "one of b's is missing"
    with pytest.raises(ConfigurationError, match="tune_on: tuning has no task whose responses are scored"):
        best_titles(config, tried, scores(None, None, None, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**RATES, "tune_on": None}, "tune_on: a study that tunes needs a data set"),
        ({**RATES, "tune_on": "tunin"}, "data: no data set 'tunin'.*'tuning'"),
        ({**RATES, "tune": ["training.learnin_rate"]}, "tune_values: none for training.learnin_rate.*learning_rate"),
        ({**RATES, "grid": {"training.learning_rate": [1]}}, "grid: training.learning_rate is tuned"),
        ({**RATES, "stages": {"one": {"training.learning_rate": 1}}}, "stages.one: training.learning_rate is tuned"),
        ({**RATES, "tune": ["training.learning_rate"] * 2}, "tune: names a key twice"),
        ({**RATES, "score": {"x": "study:tuning"}}, "tune_on: tuning is scored, as 'x'"),
        (
            {
                **RATES,
                "tune": ["objective.settings.beta_weak"],
                "cells": {"a": {"objective.settings": {"beta_weak": 1}}},
            },
            "cells.a: objective.settings.beta_weak is tuned",
        ),
        ({**RATES, "score": {"tuning": "folder"}}, "score: 'tuning' is what the scores on tune_on are called"),
        ({"cells": {}}, "cells: a study needs"),
        ({"seeds": [1, 1]}, "seeds: must be different"),
        ({"baseline": "aa"}, r"baseline: no cell 'aa'.*'a'"),
        ({"cells": {"a": {"objectiv.name": "opd"}}}, r"cells.a: unknown option --objectiv.name"),
        ({"cells": {"a": {"objective.name": "dodp"}}}, r"cells.a: objective.name: .* did you mean 'dopd'"),
        (
            {"cells": {"a": {}, "b": {"trl.share_prompts": False}}},
            r"cells.b: .*training.share_prompts; set it there",
        ),
        ({"cells": {"a": {"privilege.learner_variant": "hints"}}}, "cells.a: .* is called student_variant now"),
        ({"cells": {"a": {"training.num_generations": 5}}}, "cells.a: training.num_generations=5 does not divide"),
        ({"cells": {"a": {"seed": 3}}}, "cells.a: seed is the study's own"),
        ({"cells": {"a": {"data.train": "study:x"}}}, "data: no data set 'x'"),
        ({"cells": {"a b": {}, "A-b": {}}}, "would share one folder"),
        ({"cells": {"a": {}, "b": {"training.max_steps": 7}}}, "cells.b: 7 steps .* equal_budget"),
        ({"workers": 0}, "workers: 0 is less than 1"),
    ],
)
def test_mistakes_are_named_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check(study(**settings))


def test_unequal_budgets_are_allowed_on_request() -> None:
    check(study(cells={"a": {}, "b": {"training.max_steps": 7}}, equal_budget=False))


@pytest.mark.parametrize("world", WORLDS, ids=lambda p: p.stem)
@pytest.mark.parametrize("file", STUDIES, ids=lambda p: p.stem)
def test_every_shipped_study_unfolds_in_every_world_that_it_is_for(world: Path, file: Path) -> None:
    if world.stem not in ONLY_FOR.get(file.stem, {world.stem}):
        return
    config = read_config(StudyConfig, ["--config", str(world), "--config", str(file)], "test")
    check(config)
    assert config.name == file.stem
    for source in config.data.values():
        if isinstance(source, dict) and source["kind"] == "nano":
            assert len(NanoSource(source["options"])) > 0
    if config.paper:
        column = paper_column(config.paper["table"], config.paper["column"])
        assert len(column.keys() & {cell.name for cell in expand(config)}) >= 3


def test_the_pretrained_world_holds_its_own_comparison() -> None:
    config = read_config(StudyConfig, ["--config", str(PRETRAINED)], "test")
    runs = [run for run in check(config) if run.seed == config.seeds[0]]
    tried = Counter(run.cell.name for run in runs)
    assert dict(tried.most_common(4)) == dict.fromkeys(("vanilla OPD", "privileged OPD", "DOPD", "DOPD-anchored"), 3)
    assert [tried[name] for name in ("DOPD, copy fixed", "OPSD", "DAPD")] == [1, 1, 1]
    question = PRETRAINED.parents[1] / "illusion-dose.yaml"
    doses = read_config(StudyConfig, ["--config", str(PRETRAINED), "--config", str(question)], "test")
    assert len(check(doses)) == 15
    assert {name for name in config.cells if "DOPD" in name} == {"DOPD", "DOPD, copy fixed", "DOPD-anchored"}


@pytest.mark.parametrize("file", MAP_QUESTIONS, ids=lambda p: p.stem)
@pytest.mark.parametrize("world", ["text", "vision"])
def test_every_question_of_the_stability_map_unfolds(world: str, file: Path) -> None:
    if world not in MAP_ONLY_FOR.get(file.stem, {world}):
        return
    config = read_config(StudyConfig, ["--config", str(MAP / f"{world}-world.yaml"), "--config", str(file)], "test")
    check(config)
    assert config.name == f"map-{file.stem}"
    assert len(config.seeds) >= 3


def test_with_a_grid_each_cell_is_compared_with_the_baseline_at_its_own_values() -> None:
    grid_study = StudyConfig(
        name="x",
        train_config="configs/llm/nano.yaml",
        cells={"a": {}, "b": {"objective.name": "opd"}},
        grid={"training.learning_rate": [0.1, 0.2], "model.student": ["runs/ladder/text-30"]},
        baseline="a",
    )
    found = {cell.name: cell.baseline for cell in expand(grid_study)}
    assert found == {
        "a learning_rate=0.1 student=text-30": "a learning_rate=0.1 student=text-30",
        "a learning_rate=0.2 student=text-30": "a learning_rate=0.2 student=text-30",
        "b learning_rate=0.1 student=text-30": "a learning_rate=0.1 student=text-30",
        "b learning_rate=0.2 student=text-30": "a learning_rate=0.2 student=text-30",
    }
