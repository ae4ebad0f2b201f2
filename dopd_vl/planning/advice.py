"""What to change when a run does not fit: concrete settings, the least harmful first, each with what it saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dopd_vl.common.errors import UserError
from dopd_vl.planning.build import VLLM_SHARE
from dopd_vl.planning.memory import memory_of
from dopd_vl.planning.workload import Workload
from dopd_vl.training.student_copies import check_copies

_WORTH = 0.01  # of the peak: a change that saves less is not proposed


@dataclass(frozen=True)
class Change:
    """One setting, on top of those before it."""

    settings: str
    cost: str
    """what it takes in return"""
    saves: int
    """bytes of the peak"""
    peak: int
    """bytes, with this change and those before it"""


def changes_to_fit(work: Workload, device_bytes: float) -> list[Change]:
    """Changes in the order to make them, until the run fits or nothing is left to propose."""
    changes: list[Change] = []
    peak = memory_of(work, int(device_bytes)).peak
    while peak > device_bytes:
        found = _first_worth_it(work, peak, device_bytes)
        if found is None:
            break
        work, change = found
        changes.append(change)
        peak = change.peak
    return list(_merged(changes))


def _first_worth_it(work: Workload, peak: int, device_bytes: float) -> tuple[Workload, Change] | None:
    """The least harmful change that saves something, and the run with it."""
    for candidate, settings, cost in _proposals(work):
        lower = memory_of(candidate, int(device_bytes)).peak
        if peak - lower >= _WORTH * peak:
            return candidate, Change(settings, cost, peak - lower, lower)
    return None


def _proposals(work: Workload) -> Iterator[tuple[Workload, str, str]]:
    """What can be changed, the least harmful first: the run with it, its settings, and what it takes in return."""
    if work.eval_batch > 1:
        size = work.eval_batch // 2
        settings = f"training.per_device_eval_batch_size: {size}"
        yield replace(work, eval_batch=size), settings, "more, smaller batches in evaluations"
    if work.batch % 2 == 0:
        batch, slices = work.batch // 2, work.accumulation * 2
        settings = f"training.per_device_train_batch_size: {batch}, training.gradient_accumulation_steps: {slices}"
        smaller = replace(work, batch=batch, accumulation=slices, scoring_batch=min(work.scoring_batch, batch))
        yield smaller, settings, "the same step in more, smaller slices"
    if work.scoring_batch > 1:
        size = work.scoring_batch // 2
        settings = f"training.scoring_batch_size: {size}"
        yield replace(work, scoring_batch=size), settings, "more, smaller scoring passes"
    if not work.uses_vllm and work.on_gpu:
        settings = "training.use_vllm: true, trl.vllm_enable_sleep_mode: true"
        served = replace(work, uses_vllm=True, vllm_share=VLLM_SHARE, vllm_sleeps=True)
        yield served, settings, "needs vLLM and data.max_prompt_length; faster rollouts, too"
    if work.vllm_share and not work.vllm_sleeps:
        settings = "trl.vllm_enable_sleep_mode: true"
        yield replace(work, vllm_sleeps=True), settings, "vLLM's weights move at each step"
    if not work.offload_scores and work.on_gpu:
        settings = "training.offload_scores: true"
        yield replace(work, offload_scores=True), settings, "copies to and from host memory"
    if not work.checkpointing:
        settings = "training.gradient_checkpointing: true"
        yield replace(work, checkpointing=True), settings, "one forward pass more"
    if work.devices > 1 and work.parallel in ("ddp", "zero2"):
        settings = "accelerate launch --config_file configs/accelerate/fsdp2.yaml (--parallel fsdp2)"
        yield replace(work, parallel="fsdp2"), settings, "weights are gathered layer by layer"
    if work.devices > 1 and work.teacher is not None and work.parallel in ("ddp", "fsdp2") and not work.shard_teacher:
        cost = "the teacher is gathered layer by layer where it scores"
        yield replace(work, shard_teacher=True), "training.shard_teacher: true", cost
    if work.chunk >= 64:
        settings = f"training.logits_chunk_size: {work.chunk // 2}"
        yield replace(work, chunk=work.chunk // 2), settings, "smaller products"
    if work.devices > 1 and work.parallel != "zero3" and _zero3_can_teach(work):
        settings = "accelerate launch --config_file configs/accelerate/zero3.yaml (--parallel zero3)"
        cost = "the teacher is gathered layer by layer, too; needs DeepSpeed"
        yield replace(work, parallel="zero3", shard_teacher=False), settings, cost
    if work.optimizer_bytes != 2 and work.parallel not in ("zero2", "zero3") and work.on_gpu:
        settings = "trl.optim: adamw_8bit"
        yield replace(work, optimizer_bytes=2), settings, "needs bitsandbytes; moments in 8 bits"
    if not work.lora_rank:
        yield replace(work, lora_rank=32), "--config configs/lora.yaml", "trains adapters, not all weights"
    if work.response_tokens >= 512:
        length = work.response_tokens // 2
        settings = f"training.max_completion_length: {length}"
        yield replace(work, response_tokens=length), settings, "longer responses are cut off"


def _zero3_can_teach(work: Workload) -> bool:
    try:
        check_copies({scoring.policy for scoring in work.scorings}, bool(work.lora_rank), zero_stage=3)
    except UserError:
        return False
    return True


def _merged(changes: list[Change]) -> Iterator[Change]:
    """The same keys set again and again are one change, to the last value."""
    for position, change in enumerate(changes):
        following = changes[position + 1] if position + 1 < len(changes) else None
        if following is not None and _keys(following) == _keys(change):
            changes[position + 1] = replace(following, saves=following.saves + change.saves)
        else:
            yield change


def _keys(change: Change) -> list[str]:
    return [part.partition(":")[0] for part in change.settings.split(", ")]
