"""What is proposed is enough, no more than that, and taken by training."""

from dataclasses import replace
from itertools import chain, pairwise

import pytest

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import UserError
from dopd_vl.planning import advice
from dopd_vl.planning.advice import changes_to_fit
from dopd_vl.planning.build import workload_of
from dopd_vl.planning.config import PlanConfig
from dopd_vl.planning.memory import fits, memory_of

GB = 10**9
LORA = ["--config", "lora"]  # the copy is the model with its adapters off
PAIR = ["--config", "llm/qwen3-8b-to-1.7b", "--training.use_vllm", "false"]


def config_of(*words: str) -> PlanConfig:
    return read_config(PlanConfig, [*PAIR, "--gpus", "8x80", *words], "test")


def given(settings: str) -> list[str]:
    """A proposal as the words of a command."""
    if settings.startswith("--"):
        return settings.split()
    _, _, parallel = settings.partition(" (--parallel ")
    if parallel:
        way, _, rest = parallel.partition(")")
        return ["--parallel", way, *given(rest.removeprefix(", "))] if rest else ["--parallel", way]
    return [word for part in settings.split(", ") for word in (f"--{part.split(': ')[0]}", part.split(": ")[1])]


def test_a_run_that_fits_needs_no_change() -> None:
    assert changes_to_fit(config_of(), 1000 * GB) == []


@pytest.mark.parametrize("gigabytes", [60, 40, 24])
@pytest.mark.parametrize("objective", ["dopd", "dopd-anchored"])
def test_the_changes_typed_as_they_are_shown_make_the_run_fit_and_none_can_be_left_out(
    gigabytes: int, objective: str
) -> None:
    words = ["--objective.name", objective]
    changes = changes_to_fit(config_of(*words), gigabytes * GB)
    assert changes
    typed = [given(change.settings) for change in changes]
    work = workload_of(config_of(*words, *chain(*typed)))
    assert fits(work, gigabytes * GB)
    assert memory_of(work, gigabytes * GB).peak == changes[-1].peak
    for left_out in range(len(typed)):
        rest = [*typed[:left_out], *typed[left_out + 1 :]]
        assert not fits(workload_of(config_of(*words, *chain(*rest))), gigabytes * GB)
    peaks = [memory_of(workload_of(config_of(*words))).peak, *(change.peak for change in changes)]
    assert [change.saves for change in changes] == [a - b for a, b in pairwise(peaks)]


def test_the_fewest_changes_are_looked_for() -> None:
    # Slices, scoring, offloading and more would each save something; sharding the student alone is enough.
    (change,) = changes_to_fit(config_of(), 48 * GB)
    assert change.settings.endswith("configs/accelerate/fsdp2.yaml (--parallel fsdp2)")


def test_an_evaluation_that_is_too_large_is_made_smaller_before_anything_else() -> None:
    words = ["--data.eval", "held-out", "--training.per_device_eval_batch_size", "64"]
    (change,) = changes_to_fit(config_of(*words), 80 * GB)
    assert change.settings == "training.per_device_eval_batch_size: 16"


def test_what_cannot_fit_ends_above_the_memory() -> None:
    assert changes_to_fit(config_of(), 3 * GB)[-1].peak > 3 * GB


def test_nothing_is_proposed_that_is_so_already() -> None:
    words = ["--config", "lora", "--parallel", "zero3", "--training.per_device_train_batch_size", "1"]
    words += ["--training.gradient_accumulation_steps", "16", "--training.scoring_batch_size", "1"]
    changes = changes_to_fit(config_of(*words, "--training.offload_scores", "true"), 2 * GB)
    settings = " ".join(change.settings for change in changes)
    for word in ("per_device", "scoring_batch", "offload", "lora", "zero3", "fsdp2", "gradient_checkpointing"):
        assert word not in settings


def test_a_copy_whose_weights_zero_3_does_not_keep_is_never_sent_there() -> None:
    for objective, lora, proposed in (("dopd", [], True), ("dopd-anchored", [], False), ("dopd-anchored", LORA, True)):
        config = config_of("--objective.name", objective, *lora)
        every = list(advice._proposals(config, workload_of(config), 80 * GB))
        (zero_3,) = [proposal for proposal in every if proposal.values.get("parallel") == "zero3"]
        assert (advice._sound(config, [zero_3]) is not None) == proposed


def test_adapters_are_proposed_as_the_shipped_configuration_has_them() -> None:
    config = config_of()
    (lora,) = [p for p in advice._proposals(config, workload_of(config), 80 * GB) if p.kind == "adapters"]
    changed = advice._sound(config, [lora])
    assert changed is not None
    assert changed[0] == config_of(*given(advice._in_words(lora.values)))


def test_vllm_is_proposed_with_all_that_training_wants_of_it() -> None:
    words = ["--model.student", "Qwen/Qwen3-1.7B", "--model.teacher", "Qwen/Qwen3-8B", "--gpus", "1x80"]
    long = ["--training.max_completion_length", "30000", "--training.per_device_train_batch_size", "4"]
    config = read_config(PlanConfig, [*words, *long], "test")
    work = workload_of(config)
    (vllm,) = [p for p in advice._proposals(config, work, 80 * GB) if p.kind == "vLLM"]
    assert vllm.values["data.max_prompt_length"] == 1024
    with pytest.raises(UserError, match=r"data.max_prompt_length"):
        workload_of(replace(config, training=replace(config.training, use_vllm=True)))
    typed = [word for key, value in vllm.values.items() for word in (f"--{key}", str(value).lower())]
    assert workload_of(read_config(PlanConfig, [*words, *long, *typed], "test")).uses_vllm


def test_a_share_in_which_vllm_has_no_room_is_raised() -> None:
    words = ["--training.use_vllm", "true", "--trl.vllm_gpu_memory_utilization", "0.03"]
    (change,) = changes_to_fit(config_of(*words, "--gpus", "8x141"), 141 * GB)
    key, _, share = change.settings.partition(": ")
    assert key == "trl.vllm_gpu_memory_utilization"
    assert 0.03 < float(share) < 0.3
    assert fits(workload_of(config_of(*words, f"--{key}", share)), 141 * GB)
