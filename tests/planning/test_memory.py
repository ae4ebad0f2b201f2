"""The memory of a step: what parallelism, checkpointing, adapters and vLLM do to it; runs hold what it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dopd_vl.planning.catalogue import model_shape
from dopd_vl.planning.lines import MOMENTS
from dopd_vl.planning.memory import Memory, memory_of
from dopd_vl.planning.workload import Parallel, Scoring, TeacherHere, Workload

ROOT = Path(__file__).parents[2]
GB = 10**9
STUDENT, TEACHER = (model_shape(f"Qwen/Qwen3-{size}", "model.student") for size in ("1.7B", "8B"))
WORK = Workload(
    student=STUDENT,
    teachers=(TeacherHere(TEACHER),),
    scorings=(
        Scoring("teacher", "privileged", True, True, False),
        Scoring("student", "privileged", True, False, False),
    ),
    full_support=True,
    batch=4,
    accumulation=4,
    group=4,
    scoring_batch=4,
    prompt_tokens=1024,
    privileged_tokens=2048,
    response_tokens=1024,
    devices=8,
    parallel="ddp",
)


def size(memory: Memory, name: str) -> int:
    return next((line.bytes for line in memory.lines if line.name == name), 0)


def test_the_peak_is_the_sum_of_the_lines_at_the_worst_moment() -> None:
    memory = memory_of(WORK)
    assert memory.peak == max(memory.at(moment) for moment in MOMENTS) == memory.at(memory.peak_moment)
    assert all(line.reason and line.moments <= set(MOMENTS) for line in memory.lines)
    assert len({line.name for line in memory.lines}) == len(memory.lines)


def test_training_state_under_ddp_by_hand() -> None:
    # 1.72 B parameters: fp32 weights 4, AdamW 8, gradients 4, DDP's buckets 4 bytes each; the teacher's 8.19 B in bf16.
    memory, count = memory_of(WORK), STUDENT.parameters
    names = ("student's weights", "optimizer state", "gradients", "reduction buckets")
    assert [size(memory, name) for name in names] == [4 * count, 8 * count, 4 * count, 4 * count]
    assert size(memory, "teacher's weights") == 2 * TEACHER.parameters
    assert size(memory, "bf16 copies of the student's weights") == 2 * count
    assert size(memory, "bf16 copies to generate with") == 2 * count


def test_frozen_weights_are_copied_whole_to_generate_with() -> None:
    adapters = memory_of(replace(WORK, lora_rank=16))
    copies, generating = (
        next(line for line in adapters.lines if line.name == name)
        for name in ("bf16 copies of the student's weights", "bf16 copies to generate with")
    )
    assert copies.bytes == 2 * STUDENT.layer_parameters
    assert generating.bytes == 2 * STUDENT.parameters
    assert generating.moments == {"prefill", "rollout", "evaluation"}
    assert not copies.moments & generating.moments
    with_vllm = memory_of(replace(WORK, uses_vllm=True))
    assert next(line for line in with_vllm.lines if line.name == generating.name).moments == {"evaluation"}


# Bytes a parameter over eight devices: of the student's weights, optimizer state and gradients, and of the teacher's.
@pytest.mark.parametrize(
    ("parallel", "weights", "optimizer", "gradients", "teacher"),
    [
        ("fsdp2", 4 / 8, 8 / 8, 4 / 8, 2),
        ("zero2", 2, 12 / 8, 2 / 8, 2),
        ("zero3", 2 / 8, 12 / 8, 2 / 8, 2 / 8),
    ],
)
def test_what_lies_in_shards(
    parallel: Parallel, weights: float, optimizer: float, gradients: float, teacher: float
) -> None:
    memory = memory_of(replace(WORK, parallel=parallel))
    found = [size(memory, name) for name in ("student's weights", "optimizer state", "gradients")]
    assert found == pytest.approx([STUDENT.parameters * b for b in (weights, optimizer, gradients)], rel=1e-6)
    assert size(memory, "teacher's weights") == pytest.approx(TEACHER.parameters * teacher, rel=1e-6)


def test_scores_take_eight_bytes_for_each_kept_entry_and_twenty_more() -> None:
    tokens = 4 * 4 * 1024
    assert size(memory_of(WORK), "kept scores of teacher (privileged)") == tokens * (8 * 128 + 20)
    offloaded = memory_of(replace(WORK, offload_scores=True))
    assert size(offloaded, "kept scores of teacher (privileged)") == tokens * 20
    assert size(offloaded, "kept hidden states of teacher (privileged)") == 0


def test_rollouts_hold_keys_and_values_of_the_whole_step_unless_vllm_does() -> None:
    # Keys in fp32 and values in bf16, 28 layers of 8 heads of 128, one layer more while it grows.
    memory = memory_of(WORK)
    assert size(memory, "rollouts' keys and values") == pytest.approx(16 * 2048 * 29 * 8 * 128 * 6, rel=1e-6)
    served = memory_of(replace(WORK, uses_vllm=True, vllm_share=0.3), 80 * GB)
    assert size(served, "rollouts' keys and values") == 0
    assert size(served, "vLLM") == 24 * GB
    asleep = memory_of(replace(WORK, uses_vllm=True, vllm_share=0.3, vllm_sleeps=True), 80 * GB)
    assert asleep.at("loss") == served.at("loss") - 24 * GB


def test_an_evaluation_holds_its_own_keys_and_values_whatever_rolls_out() -> None:
    # 32 responses of 5,120 tokens; 6 bytes for a key and a value, as above; four fp32 copies of 32 rows of logits.
    work = replace(WORK, eval_batch=32, eval_prompt_tokens=1024, eval_response_tokens=4096)
    cache, logits = 32 * 5120 * 29 * 8 * 128 * 6, 4 * 4 * 32 * 151_936
    assert size(memory_of(WORK), "evaluation") == 0
    assert size(memory_of(work), "evaluation") == pytest.approx(cache + logits, rel=1e-6)
    served = replace(work, uses_vllm=True, vllm_share=0.3, vllm_sleeps=True)
    asleep, awake = (memory_of(replace(served, vllm_sleeps=on), 80 * GB) for on in (True, False))
    assert size(asleep, "evaluation") == size(memory_of(work), "evaluation")
    assert awake.at("evaluation") == asleep.at("evaluation") + 24 * GB
    larger = memory_of(replace(work, eval_batch=64))
    assert larger.peak_moment == "evaluation"
    assert larger.at("loss") == memory_of(work).at("loss") + size(larger, "fragmentation") - size(
        memory_of(work), "fragmentation"
    )


@pytest.mark.parametrize("parallel", ["fsdp2", "zero3"])
@pytest.mark.parametrize("uses_vllm", [False, True])
def test_a_student_in_shards_is_whole_while_it_generates(parallel: Parallel, uses_vllm: bool) -> None:
    memory = memory_of(replace(WORK, parallel=parallel, uses_vllm=uses_vllm))
    (line,) = [line for line in memory.lines if line.name == "weights gathered to generate"]
    assert line.bytes == 2 * STUDENT.parameters
    assert line.moments == {"evaluation"} | (set() if uses_vllm else {"prefill", "rollout"})


def test_a_sharded_teacher_is_a_share_and_what_is_gathered_of_it_where_it_scores() -> None:
    memory = memory_of(replace(WORK, shard_teacher=True))
    assert size(memory, "teacher's weights") == 2 * TEACHER.parameters // 8
    gathered = 2 * (2 * TEACHER.layer_parameters + 2 * 151_936 * 4096)  # Qwen3-8B's head is not its embedding
    (line,) = [line for line in memory.lines if line.name == "teacher's weights gathered to score"]
    assert (line.bytes, line.moments) == (gathered, {"scoring"})
    assert size(memory, "teacher's head gathered") == 2 * 151_936 * 4096
    assert memory.peak < memory_of(WORK).peak


@pytest.mark.parametrize(
    "change",
    [{"checkpointing": False}, {"batch": 8}, {"response_tokens": 2048}, {"prompt_tokens": 2048}, {"chunk": 512}],
)
def test_more_work_holds_more(change: dict) -> None:
    assert memory_of(replace(WORK, **change)).at("loss") > memory_of(WORK).at("loss")


def test_adapters_leave_gradients_and_moments_of_themselves_alone() -> None:
    memory = memory_of(replace(WORK, lora_rank=32))
    adapters = STUDENT.adapter_parameters(32, "all-linear")
    assert size(memory, "gradients") == 4 * adapters < 0.03 * 4 * STUDENT.parameters
    assert size(memory, "head's gradient") == 0


def test_the_student_at_its_start_is_a_copy_unless_adapters_can_be_turned_off() -> None:
    scorings = (Scoring("start", "plain", True, False, False),)
    whole = memory_of(replace(WORK, scorings=scorings))
    assert size(whole, "the student's start weights") == 4 * STUDENT.parameters
    assert size(memory_of(replace(WORK, scorings=scorings, lora_rank=8)), "the student's start weights") == 0


def test_images_are_held_by_the_tower() -> None:
    vision = model_shape("Qwen/Qwen3-VL-2B-Instruct", "model.student")
    work = replace(WORK, student=vision, images=1, image_tokens=1024)
    assert size(memory_of(work), "vision tower's activations") > 0
    assert memory_of(replace(work, images=2)).peak > memory_of(work).peak


def test_every_measured_run_was_predicted_within_15_percent() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())["rows"]
    assert {row["size"] for row in rows} == {"small", "medium", "large"}
    for row in rows:
        assert 0.85 <= row["predicted"] / row["measured"] <= 1.15, row
