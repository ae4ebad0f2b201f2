"""`dopd-vl plan` from the command line."""

import dataclasses
import re
import subprocess
from itertools import chain
from pathlib import Path

import pytest
import torch
from test_advice import given

from dopd_vl.commands.plan import main
from dopd_vl.common.errors import UserError
from dopd_vl.core.projection import chunk_size_for
from dopd_vl.planning import build
from dopd_vl.planning.config import MachineSettings, PlanConfig
from dopd_vl.train_config import LoopSettings
from tests.commands import ROOT, dopd_vl


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return dopd_vl("plan", *arguments)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_run_that_fits_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "llm/nano", "--gpus", "1x8"]) == 0
    text = said(capsys)
    assert re.search(r"It fits: [\d.]+ of 8.0 GB a GPU, with a margin of [\d.]+ GB \(\d+%\)", text)
    assert "Assumed: longest prompt 1024 tokens" in text
    assert "100 steps of 32 rollouts" in text


def test_one_that_does_not_ends_with_1_and_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "llm/qwen3-8b-to-1.7b", "--gpus", "8x48", "--gpu", "l40s"]) == 1
    text = said(capsys)
    assert "It does not fit" in text
    assert "Change, in this order" in text
    assert "362 TFLOPS dense bf16" in text


def test_a_given_throughput_takes_the_place_of_the_data_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "llm/nano", "--gpus", "1x8", "--tflops", "100", "--mfu", "0.5"]) == 0
    assert "100 TFLOPS dense bf16 a GPU at 50%" in said(capsys)


def test_vllm_with_too_small_a_share_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "llm/qwen3-8b-to-1.7b", "--gpus", "8x141", "--trl.vllm_gpu_memory_utilization", "0.025"]
    assert main(arguments) == 1
    assert "That is too little" in said(capsys)


def test_a_family_that_no_view_is_written_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(
        UserError, match=r"model\.student: no view processor for vision-language model type 'qwen2_5_vl'"
    ):
        main(["--config", "llm/nano", "--model.student", str(tmp_path), "--model.teacher", str(tmp_path)])


@pytest.mark.parametrize(
    ("student", "teacher", "sharing"),
    [
        ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-30B-A3B-Instruct", 2),
        ("Qwen/Qwen3.5-2B", "Qwen/Qwen3.5-35B-A3B", 0),  # a recurrent state is not gone on from
    ],
)
def test_newer_families_are_counted_as_they_are_trained(
    student: str, teacher: str, sharing: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "vlm/qwen3-vl-8b-to-2b", "--model.student", student, "--model.teacher", teacher]
    assert main([*words, "--gpus", "8x288"]) == 0
    assert said(capsys).count("a prompt once for its siblings") == sharing


def test_an_evaluation_is_counted_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "llm/qwen3-8b-to-1.7b", "--gpus", "8x80", "--training.per_device_eval_batch_size", "64"]
    assert main(words) == 0
    assert main([*words, "--data.eval", "held-out"]) == 1
    text = said(capsys)
    assert "at its worst moment: evaluation" in text
    assert "more, smaller" in text


def test_a_margin_within_which_predictions_were_off_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "llm/qwen3-8b-to-1.7b"]
    said_close = {}
    for gigabytes in ("75", "141"):
        assert main([*words, "--gpus", f"8x{gigabytes}"]) == 0
        said_close[gigabytes] = "That is close" in said(capsys)
    assert said_close == {"75": True, "141": False}


def test_main_memory_and_disk_are_said_and_compared_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "llm/qwen3-8b-to-1.7b", "--gpus", "8xh100"]
    assert main(words) == 0
    text = said(capsys)
    # Student in fp32 and teacher in bf16, eight times; three checkpoints of 12 bytes a parameter, and the student.
    loading = 8 * (4 * 1.720574976 + 2 * 8.190735360)
    assert f"loading models {loading:.1f}" in text
    assert f"Disk for output_dir: {(3 * 12 + 4) * 1.720574976:.1f} GB" in text
    assert main([*words, "--machines", "2"]) == 0
    assert f"loading models {loading / 2:.1f}" in said(capsys)
    for key, value in (("host_memory", "200"), ("disk", "60")):
        assert main([*words, f"--{key}", value]) == 1
        assert f"That is more than {key}: {value} GB." in said(capsys)
    assert main([*words, "--host_memory", "256", "--disk", "100"]) == 0


def test_a_run_of_passes_over_the_data_has_no_hours_and_no_fewer_checkpoints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--config", "llm/qwen3-8b-to-1.7b", "--gpus", "8xh100"]
    assert main([*words, "--training.num_train_epochs", "2"]) == 0
    text = said(capsys)
    assert "GPU hours" not in text
    assert "3 checkpoints" in text


def test_a_named_gpu_has_the_bytes_that_a_process_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "llm/nano", "--gpus", "2xrtx-4090"]) == 0
    text = said(capsys)
    assert f"2 x {23.64 * 2**30 / 1e9:.1f} GB, ddp" in text
    assert "165 TFLOPS dense bf16" in text


def test_plans_own_keys_stand_first_in_its_help() -> None:
    text = plan("--help").stdout
    options = re.findall(r"^  --([a-z_.]+)", text, re.MULTILINE)
    own = [field.name for field in dataclasses.fields(MachineSettings)]
    assert [option for option in options if option not in ("config", "print_config")][: len(own)] == own


def test_advice_names_files_that_are_there_wherever_it_is_asked_for(tmp_path: Path) -> None:
    words = ["--config", "llm/qwen3-8b-to-1.7b", "--gpus", "8xl40s"]
    for folder, shown in ((ROOT, "configs/accelerate/fsdp2.yaml"), (tmp_path, str(ROOT / "configs"))):
        result = dopd_vl("plan", *words, cwd=folder)
        assert result.returncode == 1
        (file,) = re.findall(r"--config_file (\S+)", result.stdout)
        assert file.startswith(shown)
        assert (folder / file).is_file()


@pytest.mark.parametrize("objective", ["dopd", "dopd-anchored"])
def test_what_is_proposed_is_taken_as_it_is_printed(objective: str, tmp_path: Path) -> None:
    words = ["--config", "llm/qwen3-8b-to-1.7b", "--objective.name", objective, "--gpus", "8xrtx-4090"]
    result = dopd_vl("plan", *words, cwd=tmp_path)
    proposed = re.findall(r"^\d+\. (.+)$", result.stdout, re.MULTILINE)
    assert result.returncode == 1
    assert proposed
    changed = dopd_vl("plan", *words, *chain(*map(given, proposed)), cwd=tmp_path)
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert "It fits" in changed.stdout


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    result = plan("--config", "llm/nano", "--model.student", "Qwen/Qwen3-9B")
    assert result.returncode == 2
    assert result.stderr.startswith("error: model.student: the shape of 'Qwen/Qwen3-9B' is not known")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "eight"], "gpus: 'eight' is neither NUMBERxNAME nor NUMBERxGB"),
        (["--gpus", "0x80"], "is neither NUMBERxNAME"),
        (["--gpus", "8xh1000"], "gpus: unknown GPU 'h1000', did you mean 'h100'"),
        (["--gpus", "8x80", "--machines", "3"], "machines=3 does not divide the 8 GPUs"),
        (["--training.lr_scheduler_type", "cosin"], "training.lr_scheduler_type: cosin is not"),
        (["--trl.optim", "adamw_torch_fuzed"], "trl.optim: adamw_torch_fuzed is not"),
        (["--gpu", "h1000"], "did you mean 'h100'"),
        (["--mfu", "1.5"], "mfu=1.5 must be above 0"),
        (["--gpus", "2x80", "--parallel", "single"], "parallel: single uses one GPU"),
        (["--model.teacher", "Qwen/Qwen3-8B"], "model.teacher: its vocabulary has 151936"),
        (["--objective.name", "dodp"], "did you mean 'dopd'"),
        (["--trl.optim", "sgd"], "trl.optim: the memory of 'sgd'"),
        (["--objective.name", "sdpo"], "compares rollouts of one prompt"),
        (["--trl.logits_chunk_sise", "64"], "did you mean 'logits_chunk_size'"),
        (["--trl.logits_chunk_size", "64"], "trl.logits_chunk_size: has a key of its own, training.logits_chunk_size"),
        (["--trl.learning_rate", "0.1"], "trl.learning_rate: has a key of its own, training.learning_rate"),
        (["--trl.use_cpu", "true"], "trl.use_cpu: follows from the machine"),
        (["--trl.vllm_enable_sleep_mode", "3"], "trl.vllm_enable_sleep_mode: must be true or false, not 3"),
        (["--trl.vllm_mode", "serve", "--training.use_vllm", "true"], "did you mean 'server'"),
        (["--training.logits_chunk_size", "0"], "training.logits_chunk_size=0 must be at least 1"),
        (["--training.num_generations", "5"], "training.num_generations=5 does not divide the 32 rollouts"),
        (["--training.eval_variants", "[boxes]"], "training.eval_variants: unknown variant 'boxes'"),
        (["--privilege.learner_variant", "hints"], "is called student_variant now"),
        (["--privilege.student_variant", "hints"], "Give copy_variant"),
        (["--objective.name", "vision-opd", "--training.num_generations", "2"], "the student reads text only"),
        (
            ["--objective.name", "dopd-anchored", "--gpus", "8x80", "--parallel", "zero3"],
            "are not kept with ZeRO-3",
        ),
        (["--prompt_tokens", "0"], "prompt_tokens=0 must be at least 1"),
        (["--gpus", "8x80", "--parallel", "fsdp2", "--training.bf16", "false"], "training.bf16: false is not counted"),
        (["--training.shard_teacher", "true"], "training.shard_teacher: one process"),
        (
            ["--gpus", "8x80", "--parallel", "zero3", "--training.shard_teacher", "true"],
            "shard_teacher: DeepSpeed's own",
        ),
        (["--training.use_vllm", "true"], "data.max_prompt_length: give it"),
        (
            ["--training.use_vllm", "true", "--data.max_prompt_length", "64", "--trl.vllm_max_model_length", "100"],
            "trl.vllm_max_model_length: 100 is less than",
        ),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        main(["--config", "llm/nano", *arguments])


@pytest.mark.parametrize(("family", "refused"), [("gemma2", "scales its logits"), ("llama", None)])
def test_a_family_that_training_refuses_is_refused_by_its_folder(
    tmp_path: Path, family: str, refused: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}", "num_hidden_layers": 2}}')
    words = [word for role in ("student", "teacher") for word in (f"--model.{role}", str(tmp_path / "config.json"))]
    if refused is not None:
        with pytest.raises(UserError, match=f"model.student: the student {refused}"):
            main([*words, "--gpus", "1xh200"])
        return
    assert main([*words, "--gpus", "1xh200"]) == 0
    assert "activations of llama" in said(capsys)


def test_settings_that_are_left_out_are_the_trainers_defaults() -> None:
    from dopd_vl.training.arguments import DopdConfig

    defaults = DopdConfig.__dataclass_fields__
    work = build.workload_of(PlanConfig())
    assert work.chunk == chunk_size_for("cuda", work.student.vocabulary, torch.bfloat16)
    assert build.workload_of(PlanConfig(), on_gpu=False).chunk == chunk_size_for("cpu", 1, torch.float32)
    assert build.workload_of(PlanConfig(training=LoopSettings(logits_chunk_size=7))).chunk == 7
    assert work.vllm_sleeps == defaults["vllm_enable_sleep_mode"].default
    assert work.eval_batch == 0
    served = PlanConfig()
    served.training.use_vllm = True
    served.data.max_prompt_length = 1024
    served.data.eval = "held-out"
    assert build.workload_of(served).eval_batch == served.training.per_device_eval_batch_size == 32
    assert build.workload_of(served).vllm_length == 1024 + 2048
    assert build.workload_of(served).vllm_share == defaults["vllm_gpu_memory_utilization"].default
    assert defaults["vllm_mode"].default == "colocate"
