"""Frozen parts of a vision-language student stay what they were, and the others learn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from dopd_vl import DopdConfig
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.objectives import Dopd
from dopd_vl.planning.build import workload_of
from dopd_vl.planning.config import PlanConfig
from dopd_vl.planning.host import disk_lines
from dopd_vl.planning.memory import memory_of
from dopd_vl.train_config import PARTS, LoraSettings, ModelSettings
from dopd_vl.training.freezing import part_of
from dopd_vl.training.run import load_examples
from tests.commands import dopd_vl
from tests.conftest import MakeTrainer

OPTIMIZER = "optimizer.pt"


def words_of(models: Path, data: Path, run: Path, *more: object) -> list[object]:
    words: list[object] = ["--model.student", models / "vision-student", "--model.teacher", models / "vision-teacher"]
    words += ["--data.train", data, "--output_dir", run, "--training.max_steps", 2, "--training.learning_rate", 1e-2]
    words += ["--training.per_device_train_batch_size", 8, "--training.max_completion_length", 6]
    return [*words, "--training.weight_decay", 0.1, *more]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("frozen", [["vision"], ["projector"], ["vision", "projector"], ["language"]])
def test_what_is_frozen_stays_to_the_last_bit_and_has_no_place_in_the_optimizer(
    frozen: list[str], family: str, families: Callable[[str], Path], vision_data: Path, tmp_path: Path
) -> None:
    models, run = families(family), tmp_path / "run"
    done = dopd_vl("train", *words_of(models, vision_data, run, "--model.freeze", json.dumps(frozen)))
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (models / "vision-student", run / "student"))
    assert before.keys() == after.keys()
    changed: dict[str, list[bool]] = {part: [] for part in PARTS}
    for name, weight in after.items():
        changed[part_of(name)].append(not torch.equal(weight, before[name]))
    for part in PARTS:
        assert any(changed[part]) == (part not in frozen)
    states = torch.load(run / "checkpoint-2" / OPTIMIZER, weights_only=True)["state"]
    held = sum(state["exp_avg"].numel() for state in states.values())
    assert held == sum(weight.numel() for name, weight in after.items() if part_of(name) not in frozen)


@pytest.mark.parametrize("frozen", [["vision", "projector"], ["language"]])
def test_adapters_are_kept_out_of_what_is_frozen(
    frozen: list[str], nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ["--model.freeze", json.dumps(frozen), "--model.lora", json.dumps({"r": 2, "alpha": 4})]
    done = dopd_vl("train", *words_of(nano_models, vision_data, run, *more))
    assert done.returncode == 0, done.stderr
    adapters = load_file(run / "student" / "adapter_model.safetensors")
    assert {part_of(name) for name in adapters} == set(PARTS) - set(frozen)
    words = ["--model", run / "student", "--data", vision_data, "--size", 2, "--max_new_tokens", 2]
    done = dopd_vl("evaluate", *words, "--output_dir", tmp_path / "scores")
    assert done.returncode == 0, done.stderr


def test_adapters_of_ones_own_are_kept_out_too_beside_what_they_leave_out_anyway(make_trainer: MakeTrainer) -> None:
    for own in (["q_proj"], r".*\.q_proj"):
        lora = LoraConfig(r=2, target_modules="all-linear", exclude_modules=own, task_type="CAUSAL_LM")
        trainer = make_trainer(freeze=["vision"], peft_config=lora)
        learning = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
        assert {part_of(name) for name in learning} == {"projector", "language"}
        assert not any("q_proj" in name for name in learning)
        assert any("k_proj" in name for name in learning)


def test_beside_a_frozen_language_model_examples_without_images_teach_nothing_and_end_nothing(
    make_trainer: MakeTrainer, vision_data: Path
) -> None:
    examples = load_examples(str(vision_data)).select(range(8))
    half = examples.map(lambda row, number: {"images": row["images"] if number % 2 else []}, with_indices=True)
    trainer = make_trainer(
        objective=Dopd(top_k=16), dataset=half, freeze=["language"], max_steps=4, per_device_train_batch_size=1,
        gradient_accumulation_steps=2, logging_steps=1,
    )  # fmt: skip
    trainer.train()
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert len(norms) == 4
    assert max(norms) > 0


def test_the_students_average_is_of_what_learns(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(objective=Dopd(student_policy="average"), freeze=["vision", "projector"])
    trainer.train()
    names = trainer.policies.copies.average.weights
    assert {part_of(name) for name in names} == {"language"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.freeze", '["visoin"]'], "model.freeze: no part 'visoin', did you mean 'vision'"),
        (["--model.freeze", json.dumps(PARTS)], "model.freeze: leaves nothing to learn"),
        (
            ["--model.freeze", '["language"]', "--model.lora", '{"target_modules": "q_proj"}'],
            "model.lora.target_modules: all of it is frozen by model.freeze (language)",
        ),
    ],
)
def test_what_cannot_be_frozen_is_one_line(
    words: list[object], said: str, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    for command in ("train", "plan"):
        done = dopd_vl(command, *words_of(nano_models, vision_data, tmp_path / "run", *words))
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert said in line


def test_a_student_that_reads_text_has_no_parts(make_trainer: MakeTrainer, nano_models: Path, text_data: Path) -> None:
    words = ["--model.student", nano_models / "text-student", "--model.teacher", nano_models / "text-teacher"]
    done = dopd_vl("train", *words, "--data.train", text_data, "--model.freeze", '["vision"]')
    assert done.returncode == 2
    assert "model.freeze: names parts of a vision-language model, but the student reads text only" in done.stderr
    with pytest.raises(UserError, match=r"model\.freeze: the student reads text only, and has no vision part"):
        make_trainer("text", freeze=["vision"])
    with pytest.raises(UserError, match=r"model\.freeze: of language alone there is nothing that learns"):
        make_trainer("text", freeze=["language"])
    with pytest.raises(UserError, match=r"freeze: no part 'tower'"):
        DopdConfig("x", use_cpu=True, freeze=["tower"])


def test_data_without_images_teach_a_frozen_language_model_nothing(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    words = words_of(nano_models, text_data, tmp_path / "run", "--model.freeze", '["language"]')
    done = dopd_vl("train", *words)
    assert done.returncode == 2
    assert (
        "model.freeze: beside a frozen language model images are learned from, and data.train has none" in done.stderr
    )


def test_a_run_of_before_there_was_freezing_goes_on(nano_models: Path, vision_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*words_of(nano_models, vision_data, run), "--training.lr_scheduler_type", "constant"]
    assert dopd_vl("train", *words).returncode == 0
    file = run / "config.yaml"
    assert "  freeze: []\n" in file.read_text()
    file.write_text(file.read_text().replace("  freeze: []\n", ""))
    (run / "digests.json").unlink()
    frozen = dopd_vl("train", *words, "--resume", "true", "--model.freeze", '["vision"]')
    assert frozen.returncode == 2
    assert "resume: model.freeze was [] in" in frozen.stderr
    longer = dopd_vl("train", *words, "--resume", "true", "--training.max_steps", 3)
    assert longer.returncode == 0, longer.stderr
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl") if "loss" in row] == [1, 2, 3]


def test_a_plan_counts_the_optimizer_of_what_learns_and_saves_all() -> None:
    def work(freeze: list[str], lora: LoraSettings | None = None) -> Any:
        student, teacher = "Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"
        return workload_of(PlanConfig(model=ModelSettings(student, teacher, freeze=freeze, lora=lora)))

    def held(name: str, frozen: list[str]) -> int:
        return sum(line.bytes for line in memory_of(work(frozen)).lines if line.name == name)

    student = work([]).student
    sizes = {part: student.parameters_of(part) for part in PARTS}
    assert sum(sizes.values()) == student.parameters
    # Four mergers: a norm of 1,024 or of 4,096 patches' values, 4,096 x 4,096 and 4,096 x 2,048 with their biases.
    linears = 4096 * 4096 + 4096 + 4096 * 2048 + 2048
    assert sizes["projector"] == 4 * linears + 2 * 1024 + 3 * 2 * 4096
    assert held("optimizer state", ["vision", "projector"]) == 8 * sizes["language"]
    assert held("gradients", ["language"]) == 4 * (sizes["vision"] + sizes["projector"])
    assert held("vision tower's activations", ["vision", "projector"]) == 0
    assert 0 < held("vision tower's activations", ["vision"]) < held("vision tower's activations", [])
    assert held("head's gradient", ["language"]) == 0
    saved = {line.name: line.bytes for line in disk_lines(work(["vision"]))}
    assert saved["student/"] == 4 * student.parameters
    all_of_it, without_tower = (work(frozen, LoraSettings()).trained for frozen in ([], ["vision", "projector"]))
    assert 0 < without_tower < all_of_it
