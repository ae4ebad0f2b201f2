"""What is proposed is enough, is in order, and saves what it says."""

from dataclasses import replace
from itertools import pairwise

import pytest
from test_memory import GB, WORK

from dopd_vl.planning.advice import changes_to_fit
from dopd_vl.planning.memory import memory_of


def test_a_run_that_fits_needs_no_change() -> None:
    assert changes_to_fit(WORK, 1000 * GB) == []


@pytest.mark.parametrize("gigabytes", [70, 60, 50, 40])
def test_the_changes_bring_the_peak_below_the_memory(gigabytes: int) -> None:
    changes = changes_to_fit(replace(WORK, checkpointing=False), gigabytes * GB)
    assert changes
    assert changes[-1].peak <= gigabytes * GB
    assert all(change.saves > 0 and change.settings and change.cost for change in changes)
    peaks = [memory_of(replace(WORK, checkpointing=False)).peak, *(change.peak for change in changes)]
    assert [change.saves for change in changes] == [a - b for a, b in pairwise(peaks)]


def test_slices_become_smaller_before_the_teacher_is_sharded() -> None:
    settings = [change.settings for change in changes_to_fit(WORK, 20 * GB)]
    assert settings[0] == "training.per_device_train_batch_size: 2, training.gradient_accumulation_steps: 8"
    (teacher,) = [position for position, setting in enumerate(settings) if setting == "training.shard_teacher: true"]
    assert teacher > 0


def test_an_evaluation_that_is_too_large_is_made_smaller_before_anything_else() -> None:
    work = replace(WORK, eval_batch=64, eval_prompt_tokens=2048, eval_response_tokens=2048)
    (change,) = changes_to_fit(work, 70 * GB)
    assert change.settings == "training.per_device_eval_batch_size: 16"


def test_what_cannot_fit_ends_above_the_memory() -> None:
    assert changes_to_fit(WORK, GB)[-1].peak > GB


def test_nothing_is_proposed_that_is_so_already() -> None:
    work = replace(WORK, batch=1, scoring_batch=1, offload_scores=True, lora_rank=8, parallel="zero3")
    settings = " ".join(change.settings for change in changes_to_fit(work, 2 * GB))
    for word in ("per_device", "scoring_batch", "offload", "lora", "zero3", "fsdp2", "gradient_checkpointing"):
        assert word not in settings


def test_what_training_refuses_is_not_proposed() -> None:
    averaged = replace(WORK, scorings=(replace(WORK.scorings[0], policy="average"),))
    for work, proposed in ((WORK, True), (averaged, False)):
        assert any("zero3" in change.settings for change in changes_to_fit(work, GB)) == proposed
