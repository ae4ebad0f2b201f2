"""The arithmetic of a step, by hand on a model of round numbers."""

from dataclasses import replace

import pytest
from transformers import Qwen3Config, Qwen3MoeConfig

from dopd_vl.planning.compute import Machine, time_of
from dopd_vl.planning.shapes import shape_of
from dopd_vl.planning.workload import Scoring, TeacherHere, Workload

CONFIG = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
MODEL = shape_of(Qwen3Config(**CONFIG), "m")
WORK = Workload(
    student=MODEL,
    teachers=(TeacherHere(MODEL),),
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
    # Weights of the layers and the head are read in fp32 and written in bf16 once, and read in bf16 for each of 10
    # tokens, and so are the keys and values of eight rollouts.
    (part,) = [part for part in time_of(WORK, MACHINE, MEAN) if part.name == "rollouts"]
    weights = (4 + 2 + 10 * 2) * (MODEL.body_parameters + 64_000)
    cache = 8 * 10 * 105 * 2 * 32 * (4 + 2)
    assert part.seconds == pytest.approx((weights + cache) / 1e12)


def test_of_a_mixture_one_token_passes_through_the_experts_that_it_goes_to_and_a_batch_reads_them_all() -> None:
    # Eight experts of three matrices 64 x 128, two of them chosen, in each of two layers.
    config = Qwen3MoeConfig(**CONFIG, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128)
    mixture = shape_of(config, "mixture")
    assert mixture.body_parameters - mixture.active_parameters == 2 * 6 * 3 * 64 * 128
    plain, mixed = (time_of(replace(WORK, student=m), MACHINE, WORK)[-1].flops for m in (MODEL, mixture))
    routers, dense, chosen = 2 * 64 * 8, 3 * 64 * 128, 2 * 3 * 64 * 128
    assert mixture.active_parameters - MODEL.active_parameters == 2 * (chosen - dense) + routers
    # Learning under checkpointing: four forward passes' worth of eight whole rollouts.
    assert mixed - plain == pytest.approx(4 * 2 * (2 * (chosen - dense) + routers) * (8 * 110), rel=1e-6)
    (one, eight) = (
        time_of(replace(WORK, student=mixture, batch=rows, accumulation=1), MACHINE, WORK)[0].seconds for rows in (1, 8)
    )
    assert eight > one


def test_twice_the_throughput_halves_the_time() -> None:
    once, twice = (time_of(WORK, replace(MACHINE, tflops=t), MEAN)[-1].seconds for t in (100, 200))
    assert once == pytest.approx(2 * twice)
