"""What to change when a run does not fit: concrete settings, the least harmful first, each with what it saves."""

from collections.abc import Callable, Iterator
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
    for propose in PROPOSALS:
        proposal = propose(work)
        if proposal is None:
            continue
        candidate, settings, cost = proposal
        lower = memory_of(candidate, int(device_bytes)).peak
        if peak - lower >= _WORTH * peak:
            return candidate, Change(settings, cost, peak - lower, lower)
    return None


Proposal = tuple[Workload, str, str] | None


def _smaller_slices(work: Workload) -> Proposal:
    if work.batch % 2:
        return None
    batch, accumulation = work.batch // 2, work.accumulation * 2
    settings = f"training.per_device_train_batch_size: {batch}, training.gradient_accumulation_steps: {accumulation}"
    smaller = replace(work, batch=batch, accumulation=accumulation, scoring_batch=min(work.scoring_batch, batch))
    return smaller, settings, "the same step in more, smaller slices"


def _smaller_scoring(work: Workload) -> Proposal:
    size = work.scoring_batch // 2
    if size < 1:
        return None
    return replace(work, scoring_batch=size), f"training.scoring_batch_size: {size}", "more, smaller scoring passes"


def _sleeping(work: Workload) -> Proposal:
    if not work.vllm_share or work.vllm_sleeps:
        return None
    return replace(work, vllm_sleeps=True), "trl.vllm_enable_sleep_mode: true", "vLLM's weights move at each step"


def _with_vllm(work: Workload) -> Proposal:
    if work.uses_vllm or not work.on_gpu:
        return None
    served = replace(work, uses_vllm=True, vllm_share=VLLM_SHARE, vllm_sleeps=True)
    return served, "training.use_vllm: true, trl.vllm_enable_sleep_mode: true", "needs vLLM; faster rollouts, too"


def _offloaded(work: Workload) -> Proposal:
    if work.offload_scores or not work.on_gpu:
        return None
    return replace(work, offload_scores=True), "training.offload_scores: true", "copies to and from host memory"


def _sharded(work: Workload) -> Proposal:
    if work.devices == 1 or work.parallel not in ("ddp", "zero2"):
        return None
    settings = "accelerate launch --config_file configs/accelerate/fsdp2.yaml (--parallel fsdp2)"
    return replace(work, parallel="fsdp2"), settings, "weights are gathered layer by layer"


def _checkpointed(work: Workload) -> Proposal:
    if work.checkpointing:
        return None
    return replace(work, checkpointing=True), "training.gradient_checkpointing: true", "one forward pass more"


def _smaller_chunks(work: Workload) -> Proposal:
    size = work.chunk // 2
    if size < 32:
        return None
    return replace(work, chunk=size), f"training.logits_chunk_size: {size}", "smaller products"


def _sharded_teacher(work: Workload) -> Proposal:
    if work.devices == 1 or work.parallel == "zero3":
        return None
    try:
        check_copies({scoring.policy for scoring in work.scorings}, bool(work.lora_rank), zero_stage=3)
    except UserError:
        return None
    settings = "accelerate launch --config_file configs/accelerate/zero3.yaml (--parallel zero3)"
    return replace(work, parallel="zero3"), settings, "the teacher is gathered layer by layer, too; needs DeepSpeed"


def _small_optimizer(work: Workload) -> Proposal:
    if work.optimizer_bytes == 2 or work.parallel in ("zero2", "zero3") or not work.on_gpu:
        return None
    return replace(work, optimizer_bytes=2), "trl.optim: adamw_8bit", "needs bitsandbytes; moments in 8 bits"


def _adapters(work: Workload) -> Proposal:
    if work.lora_rank:
        return None
    return replace(work, lora_rank=32), "--config configs/lora.yaml", "trains adapters, not all weights"


def _shorter(work: Workload) -> Proposal:
    length = work.response_tokens // 2
    if length < 256:
        return None
    settings = f"training.max_completion_length: {length}"
    return replace(work, response_tokens=length), settings, "longer responses are cut off"


PROPOSALS: tuple[Callable[[Workload], Proposal], ...] = (
    _smaller_slices,
    _smaller_scoring,
    _with_vllm,
    _sleeping,
    _offloaded,
    _checkpointed,
    _sharded,
    _smaller_chunks,
    _sharded_teacher,
    _small_optimizer,
    _adapters,
    _shorter,
)


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
