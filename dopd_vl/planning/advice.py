"""What to change when a run does not fit: the fewest settings that make it fit, the least harmful first.

A change is proposed as settings, and tried as a run with them would be: through the checks of `dopd-vl train`. What
they refuse is never proposed.
"""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.common.resources import shipped
from dopd_vl.planning.build import VLLM_SHARE, check_arguments, workload_of
from dopd_vl.planning.config import PlanConfig
from dopd_vl.planning.memory import fits, memory_of, vllm_room
from dopd_vl.planning.workload import Workload
from dopd_vl.train_config import LoraSettings

_WORTH = 0.01  # of the peak: a change that saves less is not proposed
_SEARCHED = 3  # settings of which the fewest are looked for among all; above, those without which it still fits go
_LORA_RATE = 5e-5  # of configs/lora.yaml
_ADDRESS = "http://HOST:8000"


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


@dataclass(frozen=True)
class _Proposal:
    kind: str
    values: Mapping[str, Any]
    """dotted key -> value"""
    cost: str


def changes_to_fit(config: PlanConfig, device_bytes: int) -> list[Change]:
    """Changes in the order to make them: the fewest that make the run fit, or all that help where none do."""
    proposals = _greedy(config, device_bytes)
    # In the order of their last steps: what is set to share the teacher comes before what takes that back.
    kinds = list(dict.fromkeys(proposal.kind for proposal in reversed(proposals)))[::-1]
    steps = {kind: [proposal for proposal in proposals if proposal.kind == kind] for kind in kinds}
    if proposals and _fitting(config, proposals, device_bytes):
        steps = _fewest(config, steps, device_bytes)
    return list(_changes(config, [_without_nulls(config, found[-1]) for found in steps.values()], device_bytes))


def _greedy(config: PlanConfig, device_bytes: int) -> list[_Proposal]:
    """The least harmful change that saves something, again and again, until the run fits or nothing is left."""
    proposals: list[_Proposal] = []
    work = workload_of(config)
    while not fits(work, device_bytes):
        peak = memory_of(work, device_bytes).peak
        for proposal in _proposals(config, work, device_bytes):
            changed = _sound(config, [proposal])
            if changed is None:
                continue
            saves = peak - memory_of(changed[1], device_bytes).peak
            if saves >= _WORTH * peak or proposal.kind == "vLLM's share":
                proposals.append(proposal)
                config, work = changed
                break
        else:
            break
    return proposals


def _fewest(config: PlanConfig, steps: dict[str, list[_Proposal]], device_bytes: int) -> dict[str, list[_Proposal]]:
    """Kinds of change of which none can be left out, each taken no further than it must."""
    chosen = next(
        (
            dict(some)
            for count in range(1, _SEARCHED + 1)
            for some in combinations(steps.items(), count)
            if _fitting(config, [found[-1] for _, found in some], device_bytes)
        ),
        None,
    )
    if chosen is None:
        chosen = dict(steps)
        for kind in reversed(steps):
            without = {other: found for other, found in chosen.items() if other != kind}
            if _fitting(config, [found[-1] for found in without.values()], device_bytes):
                chosen = without
    for kind in reversed(chosen):
        while len(chosen[kind]) > 1:
            less = {**chosen, kind: chosen[kind][:-1]}
            if not _fitting(config, [found[-1] for found in less.values()], device_bytes):
                break
            chosen = less
    return chosen


def _fitting(config: PlanConfig, proposals: list[_Proposal], device_bytes: int) -> bool:
    changed = _sound(config, proposals)
    return changed is not None and fits(changed[1], device_bytes)


def _sound(config: PlanConfig, proposals: list[_Proposal]) -> tuple[PlanConfig, Workload] | None:
    """The configuration with some changes and its run; None where training refuses it."""
    changed = copy.deepcopy(config)
    for proposal in proposals:
        for key, value in proposal.values.items():
            _set(changed, key, value)
    try:
        changed.model = replace(changed.model)  # judged anew as a whole
        work = workload_of(changed)
        check_arguments(changed)
    except (UserError, ValueError):
        return None
    return changed, work


def _without_nulls(config: PlanConfig, proposal: _Proposal) -> _Proposal:
    """Without what takes back an earlier proposal and is null in the configuration anyway."""
    holders = {key: _holder(config, key) for key, value in proposal.values.items() if value is None}
    idle = {key for key, (holder, name) in holders.items() if getattr(holder, name, None) is None}
    return replace(proposal, values={key: value for key, value in proposal.values.items() if key not in idle})


def _set(config: PlanConfig, key: str, value: Any) -> None:
    holder, name = _holder(config, key)
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def _holder(config: PlanConfig, key: str) -> tuple[Any, str]:
    """What has a dotted key's value, and the value's name there."""
    *sections, name = key.split(".")
    holder: Any = config
    for section in sections:
        holder = holder[section] if isinstance(holder, dict) else getattr(holder, section)
    return holder, name


def _changes(config: PlanConfig, proposals: list[_Proposal], device_bytes: int) -> Iterator[Change]:
    peak = memory_of(workload_of(config), device_bytes).peak
    for position, proposal in enumerate(proposals, start=1):
        changed = _sound(config, proposals[:position]) or _sound(config, proposals)
        assert changed is not None
        lower = memory_of(changed[1], device_bytes).peak
        yield Change(_in_words(proposal.values), proposal.cost, peak - lower, lower)
        peak = lower


def _in_words(values: Mapping[str, Any]) -> str:
    """As it is given: to the launcher, as a shipped configuration, or by key."""
    if "parallel" in values:
        file = shipped(f"configs/accelerate/{values['parallel']}.yaml")
        near = Path(os.path.relpath(file))
        shown = file if ".." in near.parts else near
        rest = {key: value for key, value in values.items() if key != "parallel"}
        more = f", {_in_words(rest)}" if rest else ""
        return f"accelerate launch --config_file {shown} (--parallel {values['parallel']}){more}"
    if "model.lora" in values:
        return "--config lora"
    in_yaml = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key}: {value}" for key, value in in_yaml.items())


def _proposals(config: PlanConfig, work: Workload, device_bytes: int) -> Iterator[_Proposal]:
    """What can be changed, the least harmful first."""
    if work.vllm_share and vllm_room(work, device_bytes) < 1 and (share := _share(work, device_bytes)):
        yield _Proposal("vLLM's share", {"trl.vllm_gpu_memory_utilization": share}, "less for training")
    if work.eval_batch > 1:
        size = {"training.per_device_eval_batch_size": work.eval_batch // 2}
        yield _Proposal("evaluations", size, "more, smaller batches in evaluations")
    if work.batch % 2 == 0:
        sizes = {
            "training.per_device_train_batch_size": work.batch // 2,
            "training.gradient_accumulation_steps": work.accumulation * 2,
        }
        yield _Proposal("slices", sizes, "the same step in more, smaller slices")
    if work.scoring_batch > 1:
        size = {"training.scoring_batch_size": work.scoring_batch // 2}
        yield _Proposal("scoring", size, "more, smaller scoring passes")
    if not work.uses_vllm and work.quantization is None:
        yield _vllm(config, work, device_bytes)
    if work.vllm_share and not work.vllm_sleeps:
        yield _Proposal("sleep", {"trl.vllm_enable_sleep_mode": True}, "vLLM's weights move at each step")
    if not work.offload_scores:
        yield _Proposal("offload", {"training.offload_scores": True}, "copies to and from host memory")
    if not work.checkpointing:
        yield _Proposal("checkpointing", {"training.gradient_checkpointing": True}, "one forward pass more")
    if work.devices > 1 and work.parallel in ("ddp", "zero2"):
        yield _Proposal("parallel", {"parallel": "fsdp2"}, "weights are gathered layer by layer")
    if work.devices > 1 and work.teachers and not work.shard_teacher:
        cost = "the teacher is gathered layer by layer where it scores"
        yield _Proposal("teacher", {"training.shard_teacher": True}, cost)
    if work.chunk >= 64:
        yield _Proposal("logits", {"training.logits_chunk_size": work.chunk // 2}, "smaller products")
    if work.devices > 1 and work.parallel != "zero3":
        cost = "the teacher is gathered layer by layer, too; needs DeepSpeed"
        alone = {"training.shard_teacher": False} if work.shard_teacher else {}
        yield _Proposal("parallel", {"parallel": "zero3", **alone}, cost)
    if work.optimizer_bytes != 2 and work.parallel in ("single", "ddp"):
        yield _Proposal("optimizer", {"trl.optim": "adamw_8bit"}, "needs bitsandbytes; moments in 8 bits")
    yield from _smaller_teachers(work)
    if not work.lora_rank:
        values = {"model.lora": LoraSettings(), "training.learning_rate": _LORA_RATE}
        yield _Proposal("adapters", values, "trains adapters, not all weights")
    elif work.quantization is None and not work.uses_vllm:
        cost = "frozen weights are rounded; needs bitsandbytes"
        yield _Proposal("student's weights", {"model.quantization": "4bit"}, cost)
    if work.response_tokens >= 512:
        length = {"training.max_completion_length": work.response_tokens // 2}
        yield _Proposal("length", length, "longer responses are cut off")


def _smaller_teachers(work: Workload) -> Iterator[_Proposal]:
    """Each in fewer bits, the largest first, then elsewhere."""
    whole = {"training.shard_teacher": False} if work.shard_teacher else {}
    for teacher in sorted(work.teachers, key=lambda teacher: -teacher.shape.parameters):
        alone = teacher.name in ("", "default")
        model = "model.teacher" if alone else f"model.teachers.{teacher.name}.model"
        bits = "model.teacher_quantization" if alone else f"model.teachers.{teacher.name}.quantization"
        if teacher.quantization != "4bit":
            fewer = "8bit" if teacher.quantization is None else "4bit"
            yield _Proposal(model, {bits: fewer, **whole}, "its weights are rounded; needs bitsandbytes")
        as_served = {} if teacher.quantization is None else {bits: None}
        yield _Proposal(
            model, {model: _ADDRESS, **as_served, **whole}, "served on GPUs of its own, see docs/teachers.md"
        )


def _vllm(config: PlanConfig, work: Workload, device_bytes: int) -> _Proposal:
    longest = config.data.max_prompt_length or max(work.prompt_tokens, work.privileged_tokens)
    served = replace(work, vllm_share=VLLM_SHARE, vllm_length=longest + work.response_tokens)
    values: dict[str, Any] = {"training.use_vllm": True, "trl.vllm_enable_sleep_mode": True}
    if config.data.max_prompt_length is None:
        values["data.max_prompt_length"] = longest
    if vllm_room(served, device_bytes) < 1 and (share := _share(served, device_bytes)):
        values["trl.vllm_gpu_memory_utilization"] = share
    return _Proposal("vLLM", values, "needs vLLM; faster rollouts, too")


def _share(work: Workload, device_bytes: int) -> float | None:
    """The least of the device's memory, in twentieths, in which vLLM has room for a rollout."""
    shares = (twentieths / 20 for twentieths in range(1, 20))
    return next((s for s in shares if vllm_room(replace(work, vllm_share=s), device_bytes) >= 1), None)
