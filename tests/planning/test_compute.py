"""The arithmetic of a step, by hand on a model of round numbers."""

from dataclasses import replace

import pytest

from dopd_vl.planning.compute import Machine, time_of
from dopd_vl.planning.shapes import ModelShape
from dopd_vl.planning.workload import Scoring, Workload

MODEL = ModelShape("m", vocabulary=1000, hidden=64, layers=2, mlp=128, heads=4, kv_heads=2, head_dim=16, tied=True)
WORK = Workload(
    student=MODEL,
    teacher=MODEL,
    scorings=(Scoring("teacher", "privileged", True, True, False),),
    full_support=True,
    batch=4,
    accumulation=2,
    group=4,
    scoring_batch=4,
    prompt_tokens=100,
    privileged_tokens=100,
    response_tokens=10,
)
MEAN = WORK  # every rollout of the longest length
MACHINE = Machine(tflops=100, bandwidth_tb=2, mfu=0.5, mbu=0.5)


def test_scoring_reads_a_prompt_once_for_its_siblings() -> None:
    # Two prompts of 100 tokens and eight responses of 10: 280 tokens through the layers, 80 through the head; pairs of
    # query and key: 2 * 100 * 100 / 2 + 8 * (100 * 10 + 10 * 10 / 2).
    pairs = 10_000 + 8 * 1050
    expected = 2 * MODEL.body_parameters * 280 + 2 * 64_000 * 80 + 4 * 64 * 2 * pairs
    (part,) = [part for part in time_of(WORK, MACHINE, MEAN) if part.name == "scoring: teacher (privileged)"]
    assert part.flops == expected
    assert part.seconds == pytest.approx(expected / 50e12)


def test_without_sharing_every_rollout_reads_its_prompt() -> None:
    shared, alone = (time_of(replace(WORK, share_prompts=on), MACHINE, MEAN)[1].flops for on in (True, False))
    # Six of the eight prompts are read besides: their tokens, and their own pairs of query and key.
    assert alone - shared == 2 * MODEL.body_parameters * 600 + 4 * 64 * 2 * 6 * 100**2 / 2


def test_checkpointing_costs_one_forward_pass_in_four_and_adapters_save_one() -> None:
    work = replace(WORK, full_support=False, share_prompts=False, scorings=())
    plain, checkpointed, adapters = (
        time_of(w, MACHINE, MEAN)[-1].flops
        for w in (replace(work, checkpointing=False), work, replace(work, checkpointing=False, lora_rank=4))
    )
    assert checkpointed / plain == pytest.approx(4 / 3)
    assert adapters / plain == pytest.approx(2 / 3)


def test_rollouts_read_the_weights_for_every_token() -> None:
    # fp32 weights of the layers and the head once for each of 10 tokens, and the keys and values of eight rollouts.
    (part,) = [part for part in time_of(WORK, MACHINE, MEAN) if part.name == "rollouts"]
    weights = 10 * 4 * (MODEL.body_parameters + 64_000)
    cache = 8 * 10 * 105 * 2 * 32 * (4 + 2)
    assert part.seconds == pytest.approx((weights + cache) / 1e12)


def test_twice_the_throughput_halves_the_time() -> None:
    once, twice = (time_of(WORK, replace(MACHINE, tflops=t), MEAN)[-1].seconds for t in (100, 200))
    assert once == pytest.approx(2 * twice)
