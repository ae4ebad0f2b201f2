"""A setting that a library will not take ends in one line with its key, and leaves the folder free."""

import shutil
from pathlib import Path

import pytest

from dopd_vl.common.files import read_jsonl, write_json
from tests.commands import dopd_vl
from tests.training.test_nothing_to_learn import command, refuses

LORA = ["--model.lora.target_modules"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.report_to", "[clearml]"], "training.report_to: ClearMLCallback requires"),
        (["--training.report_to", "[tensorbord]"], "training.report_to: unknown tracker 'tensorbord', did you mean"),
        (["--trl.report_to", "wandb"], "trl.report_to: has a key of its own, training.report_to"),
        (["--trl.push_to_hub", "true"], "trl.push_to_hub: has a key of its own, training.push_to_hub"),
        ([*LORA, "q_porj"], "model.lora.target_modules: the student has no module 'q_porj', did you mean 'q_proj'?"),
        ([*LORA, "q_proj, v_prj"], "model.lora.target_modules: the student has no module 'v_prj', did you mean"),
        ([*LORA, "q_proj, lm_head"], "model.lora.target_modules: 'lm_head' is the output head"),
        ([*LORA, "mlp"], "model.lora.target_modules: 'mlp' is no single layer that LoRA adapts"),
        ([*LORA, "all-linear, q_proj"], "model.lora.target_modules: the student has no module 'all-linear'"),
        (["--model.lora.r", 0], "model.lora.r=0 must be at least 1"),
        (["--training.lr_scheduler_type", "cosin"], "training.lr_scheduler_type: cosin is not a valid SchedulerType"),
        (
            ["--trl.optim", "galore_adamw", "--trl.optim_target_modules", "q_proj"],
            "trl.optim: You need to install `galore_torch`",
        ),
        (["--trl.optim", "adamm"], "trl.optim: adamm is not a valid OptimizerNames"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    nano_models: Path, text_data: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    refuses(command(nano_models, text_data, tmp_path / "run", *options), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trl.lr_scheduler_kwargs", '{"nmu_cycles": 2}'], "trl.lr_scheduler_kwargs.nmu_cycles: "),
        (["--trl.cache_implementation", "satic"], "trl.cache_implementation: "),
    ],
)
def test_what_shows_at_the_first_step_leaves_the_folder_free(
    nano_models: Path, text_data: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    words = command(nano_models, text_data, tmp_path / "run", "--data.eval", text_data, "--data.eval_size", 2)
    done = dopd_vl(*words, *options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}"), done.stderr
    again = dopd_vl(*words)
    assert again.returncode == 0, again.stderr
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [0, 2]
    # Whatever is left of a run that made steps keeps its claim.
    write_json(tmp_path / "run/best/dopd.json", {"step": 2})
    for left in ("student", "checkpoint-2", "metrics.jsonl", "best"):
        third = dopd_vl(*words)
        assert third.returncode == 2
        assert "already holds a run" in third.stderr
        path = tmp_path / "run" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_one_module_is_adapted_by_its_name_alone(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    done = dopd_vl(*command(nano_models, text_data, tmp_path / "run", *LORA, "q_proj", "--training.max_steps", 1))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/student/adapter_model.safetensors").is_file()
