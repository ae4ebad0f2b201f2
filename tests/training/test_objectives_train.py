"""Every objective trains through the trainer, logs what its paper looks at, and goes on as if it had not stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import UserError
from dopd_vl.objectives import OBJECTIVES
from dopd_vl.objectives.base import Requirements
from dopd_vl.train_config import TrainConfig
from dopd_vl.training.run import RunResult, run_training
from privileged.rendering.render import UNRELATED

LOGGED = {
    "opd": (),
    "opcd": ("kept_mass/student",),
    "exopd": ("exopd/reference_gap",),
    "uni-opd": ("uni-opd/margin",),
    "eopd": ("eopd/gated_share",),
    "tip": ("tip/kept_share",),
    "va-opd": ("va-opd/visual_advantage",),
    "top-d": ("top-d/reward", "token_share/raised"),
    "sa-opd": ("sa-opd/dropped_gap_share", "token_share/kept"),
    "cal-opd": ("cal-opd/reach", "loss_share/outside"),
    "rp-opsd": ("kept_mass/student",),
    "s2vopd": ("kept_mass/student",),
    "dapd": ("token_share/reference",),
    "opd-v": ("opd-v/weight", "token_share/evident"),
    "sdpo": ("sdpo/masked_rollouts",),
    "dopd": ("gap/mean", "token_share/HS"),
    "dopd-anchored": ("gap/mean", "token_share/copy"),
}


def train(name: str, world: str, models: Path, data: Path, output: Path, steps: int, **settings: Any) -> RunResult:
    options = {
        "output_dir": output,
        "model.student": models / f"{world}-student",
        "model.teacher": models / f"{world}-teacher",
        "data.train": data,
        "objective.name": name,
        "training.max_steps": steps,
        "training.save_steps": 2,
        "training.per_device_train_batch_size": 4,
        "training.num_generations": max(2, len(Requirements.of(OBJECTIVES[name]()).lessons)),
        "training.max_completion_length": 8,
        "training.gradient_checkpointing": "false",
        "training.learning_rate": 1e-3,
        "training.lr_scheduler_type": "constant",
        **settings,
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return run_training(read_config(TrainConfig, arguments, "dopd-vl train"))


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("world", ["text", "vision"])
def test_an_objective_trains_and_goes_on(
    name: str, world: str, nano_models: Path, text_data: Path, vision_data: Path, tmp_path: Path
) -> None:
    data = {"text": text_data, "vision": vision_data}[world]
    if world == "text" and Requirements.of(OBJECTIVES[name]()).needs_images:
        with pytest.raises(UserError, match=f"objective.name: objective '{name}' is about images"):
            train(name, world, nano_models, data, tmp_path / "run", 2)
        return
    whole = train(name, world, nano_models, data, tmp_path / "whole", 4)
    rows = [row for row in whole.metrics if "loss" in row]
    assert len(rows) == 4
    for key in LOGGED.get(name, ()):
        assert all(key in row for row in rows), (key, sorted(rows[0]))
    # As if killed within step 4: a checkpoint of step 2, metrics of step 3.
    killed = shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(killed / "checkpoint-4")
    shutil.rmtree(killed / "student")
    metrics = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text("".join(line for line in metrics if json.loads(line)["step"] <= 3))
    resumed = train(name, world, nano_models, data, killed, 4, resume="true")
    assert resumed.metrics == whole.metrics
    before, after = (load_file(result.student / "model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(weight, after[key]) for key, weight in before.items())


@pytest.mark.parametrize(("name", "view"), [("rp-opsd", "half_resolution"), ("s2vopd", "augmented")])
def test_the_student_learns_on_its_own_view_and_its_teacher_sees_the_deployed_one(
    name: str, view: str, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    train(name, "vision", nano_models, vision_data, tmp_path / "run", 1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    [seen] = [{s: shown for shown in row["views"] for s in shown["sources"]} for row in rows if "views" in row][:1]
    student, teacher = seen["student/plain"], seen["average/plain"]
    assert (student["variant"], teacher["variant"]) == (view, "none")
    # 48 x 48 is 9 tokens of 16 x 16, half of it 4 at most.
    assert "[image: 9 tokens]" in teacher["prompt"]
    assert "[image: 9 tokens]" not in student["prompt"]
    assert "images" in student
    hints = {"privilege.student_variant": "hints", "privilege.copy_variant": "hints"}
    with pytest.raises(UserError, match=f"shows the student '{view}'.* privilege.student_variant asks for 'hints'"):
        train(name, "vision", nano_models, vision_data, tmp_path / "refused", 1, **hints)
    halved = {"objective.settings": '{"student_variant": "halved"}'}
    with pytest.raises(UserError, match="shows the student variant 'halved'"):
        train(name, "vision", nano_models, vision_data, tmp_path / "refused", 1, **halved)


def test_a_task_reward_trains_beside_any_objective(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    # A student that is right now and then.
    options: dict[str, Any] = {"model.student": "nano:text-student", "model.teacher": "nano:text-teacher"}
    options |= {"training.num_generations": 4, "training.max_completion_length": 64}
    rows = []
    for weight in (0.0, 1.0):
        more = {**options, "training.task_reward": weight}
        run = train("dopd", "text", nano_models, text_data, tmp_path / str(weight), 3, **more)
        rows.append([row for row in run.metrics if "loss" in row])
    assert all("task_reward/rewarded_rollouts" not in row for row in rows[0])
    rewarded = [row["task_reward/rewarded_rollouts"] for row in rows[1]]
    assert max(rewarded) > 0.0
    # Up to the first prompt with two outcomes both runs are one; that one has another gradient, of the same rollouts.
    first = next(step for step, share in enumerate(rewarded) if share > 0.0)
    norms = [[row["grad_norm"] for row in run[: first + 1]] for run in rows]
    assert norms[0][:first] == norms[1][:first]
    assert norms[0][first] != norms[1][first]
    with pytest.raises(UserError, match=r"training\.task_reward=-1\.0 must be at least 0"):
        train("dopd", "text", nano_models, text_data, tmp_path / "no", 1, **{"training.task_reward": -1.0})


def seen_by(run: Path, source: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    return [view for row in rows for view in row.get("views", ()) if source in view["sources"]]


@pytest.mark.parametrize(
    ("world", "variant", "heading"),
    [("text", "other_hints", "Hints:"), ("vision", "other_box_label", "Relevant objects")],
)
def test_a_teacher_can_be_shown_what_another_example_has(
    world: str, variant: str, heading: str, nano_models: Path, text_data: Path, vision_data: Path, tmp_path: Path
) -> None:
    data = {"text": text_data, "vision": vision_data}[world]
    settings = {"objective.settings": '{"teacher_view": "privileged"}', "privilege.teacher_variant": variant}
    train("opd", world, nano_models, data, tmp_path / "run", 2, **settings)
    views = seen_by(tmp_path / "run", "teacher/privileged")
    assert views
    for view in views:
        before, _, after = view["prompt"].partition(UNRELATED)
        assert heading not in before
        assert heading in after
        assert view["variant"] == variant
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["usable_rollouts"] for row in metrics if "usable_rollouts" in row} == {1.0}


def test_a_teacher_can_be_shown_the_rollout_itself(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    settings = {"objective.settings": '{"teacher_view": "own"}'}
    train("opd", "text", nano_models, text_data, tmp_path / "run", 1, **settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    [view] = seen_by(tmp_path / "run", "teacher/own")[:1]
    assert f"which may be right or wrong:\n{rows[0]['response']}" in view["prompt"]


def test_what_an_objective_needs_and_has_not_is_named(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    def refused(name: str, **settings: Any) -> str:
        with pytest.raises(UserError) as error:
            train(name, "text", nano_models, text_data, tmp_path / "run", 1, **settings)
        return str(error.value)

    assert "compares rollouts of one prompt: num_generations=1 must be at least 2" in refused(
        "sdpo", **{"training.num_generations": 1}
    )
    assert "asks for view 'hintz', did you mean 'hints'" in refused(
        "opd", **{"objective.settings": '{"teacher_view": "hintz"}'}
    )
    assert "model.teacher: none given" in refused("opd", **{"model.teacher": "null"})
    assert not (tmp_path / "run").exists()
