"""From a configuration to a workload, a machine and its assumptions."""

import re
from collections.abc import Callable
from typing import Any

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.core.projection import DEFAULT_CHUNK_SIZE
from dopd_vl.objectives.base import Requirements, needs_teacher
from dopd_vl.objectives.build import build_objective
from dopd_vl.planning.catalogue import gpu_of, model_shape
from dopd_vl.planning.compute import Lengths, Machine
from dopd_vl.planning.config import PlanConfig
from dopd_vl.planning.objective_needs import needs_of
from dopd_vl.planning.workload import Parallel, Workload
from dopd_vl.training.checks import check_trl_fields

_LOGGED_TOP_K, _VLLM_SHARE, _PROMPT = 128, 0.3, 1024
"""Defaults of `DopdConfig.logged_top_k` and of TRL's `vllm_gpu_memory_utilization`; a prompt of unknown length."""


def workload_of(config: PlanConfig, on_gpu: bool = True) -> Workload:
    """The run that a configuration describes, on one of its devices.

    Raises:
        UserError: a setting is wrong, a model is unknown, or the two cannot be taught by one another.
    """
    objective = build_objective(config)
    devices, _ = devices_of(config)
    loop = config.training
    _check(config, devices)
    trl = _TrlFields(config.trl)
    student, teacher = model_shape(config.model.student, "model.student"), None
    if needs_teacher(objective):
        if config.model.teacher is None:
            raise UserError("model.teacher: none given, and the objective needs a teacher larger than the student")
        teacher = model_shape(config.model.teacher, "model.teacher")
        if teacher.vocabulary != student.vocabulary:
            raise UserError(
                f"model.teacher: its vocabulary has {teacher.vocabulary} entries, the student's {student.vocabulary}; "
                "both must be equal"
            )
    if loop.num_generations < Requirements.of(objective).needs_siblings:
        raise UserError(f"training.num_generations: objective {config.objective.name!r} compares several rollouts")
    top_k = min(max(trl.whole("logged_top_k", _LOGGED_TOP_K), getattr(objective, "top_k", 0)), student.vocabulary)
    scorings, full_support = needs_of(objective, loop.num_generations, top_k)
    default = config.data.max_prompt_length or _PROMPT
    dtype = config.model.teacher_dtype
    colocated = loop.use_vllm and config.trl.get("vllm_mode", "colocate") == "colocate"
    lora = config.model.lora
    return Workload(
        student=student,
        teacher=teacher,
        scorings=scorings,
        full_support=full_support,
        batch=loop.per_device_train_batch_size,
        accumulation=loop.gradient_accumulation_steps,
        siblings=loop.num_generations,
        scoring_batch=trl.whole("scoring_batch_size", loop.per_device_train_batch_size),
        prompt_tokens=config.prompt_tokens or default,
        privileged_tokens=config.privileged_tokens or default,
        response_tokens=loop.max_completion_length,
        images=config.images if student.vision else 0,
        image_tokens=config.image_tokens,
        parallel=_parallel(config, devices),
        devices=devices,
        on_gpu=on_gpu,
        lora_rank=lora.r if lora else 0,
        lora_modules=lora.target_modules if lora else "all-linear",
        teacher_bytes=4 if dtype == "float32" or (dtype == "auto" and not on_gpu) else 2,
        bf16=loop.bf16 is not False,
        optimizer_bytes=_optimizer_bytes(str(config.trl.get("optim", "adamw_torch_fused"))),
        checkpointing=loop.gradient_checkpointing,
        share_prompts=trl.switch("share_prompts", True),
        chunk=trl.whole("logits_chunk_size", DEFAULT_CHUNK_SIZE),
        top_k=top_k,
        offload_scores=trl.switch("offload_scores", False),
        uses_vllm=loop.use_vllm,
        vllm_share=trl.share("vllm_gpu_memory_utilization", _VLLM_SHARE) if colocated else 0.0,
        vllm_sleeps=trl.switch("vllm_enable_sleep_mode", False),
        full_share=config.full_share,
    )


def devices_of(config: PlanConfig) -> tuple[int, float]:
    """Number of GPUs, and bytes of memory of each."""
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)", config.gpus)
    if match is None or int(match[1]) < 1 or float(match[2]) <= 0:
        raise ConfigurationError(f"gpus: {config.gpus!r} is not NUMBERxGB, e.g. 8x80")
    return int(match[1]), float(match[2]) * 1e9


def machine_of(config: PlanConfig) -> Machine:
    """A GPU's throughput and bandwidth, by its data sheet unless given."""
    for name in ("mfu", "mbu", "mean_share", "full_share"):
        if not 0 < getattr(config, name) <= 1:
            raise ConfigurationError(f"{name}: {getattr(config, name)} must be above 0 and at most 1")
    if config.tflops is not None and config.bandwidth is not None:
        return Machine(config.tflops, config.bandwidth, config.mfu, config.mbu)
    gpu = gpu_of(config.gpu)
    return Machine(config.tflops or gpu.tflops, config.bandwidth or gpu.bandwidth_tb, config.mfu, config.mbu)


def mean_lengths(work: Workload, share: float) -> Lengths:
    """An average rollout's, as a share of the longest."""
    return Lengths(work.prompt_tokens * share, work.privileged_tokens * share, work.response_tokens * share)


class _TrlFields:
    """What a free-form `trl:` says, each value of the right kind."""

    def __init__(self, fields: dict[str, Any]):
        self.fields = fields

    def whole(self, name: str, default: int) -> int:
        return self._get(name, default, lambda value: type(value) is int and value > 0, "a whole number above 0")

    def switch(self, name: str, default: bool) -> bool:
        return self._get(name, default, lambda value: isinstance(value, bool), "true or false")

    def share(self, name: str, default: float) -> float:
        return self._get(name, default, lambda v: type(v) in (int, float) and 0 < v <= 1, "above 0 and at most 1")

    def _get(self, name: str, default: Any, right: Callable[[Any], bool], kind: str) -> Any:
        value = self.fields.get(name)
        if value is None:
            return default
        if not right(value):
            raise ConfigurationError(f"trl.{name}: {value!r} must be {kind}")
        return value


def _check(config: PlanConfig, devices: int) -> None:
    if config.trl:
        from dopd_vl.training.arguments import DopdConfig  # imports TRL, which takes its time

        check_trl_fields(config.trl, (), DopdConfig)
    loop = config.training
    least = {
        "prompt_tokens": (config.prompt_tokens, 1),
        "privileged_tokens": (config.privileged_tokens, 1),
        "images": (config.images, 0),
        "image_tokens": (config.image_tokens, 1),
        "training.per_device_train_batch_size": (loop.per_device_train_batch_size, 1),
        "training.gradient_accumulation_steps": (loop.gradient_accumulation_steps, 1),
        "training.num_generations": (loop.num_generations, 1),
        "training.max_completion_length": (loop.max_completion_length, 1),
    }
    for key, (value, smallest) in least.items():
        if value is not None and value < smallest:
            raise ConfigurationError(f"{key}: {value} must be at least {smallest}")
    if loop.per_device_train_batch_size * loop.gradient_accumulation_steps % loop.num_generations:
        raise ConfigurationError(
            "training.num_generations: does not divide the rollouts of a step on one GPU "
            "(per_device_train_batch_size * gradient_accumulation_steps)"
        )
    if loop.bf16 is False and _parallel(config, devices) not in ("single", "ddp"):
        raise ConfigurationError(
            f"training.bf16: false is not counted with {config.parallel}, only with single and ddp"
        )


def _parallel(config: PlanConfig, devices: int) -> Parallel:
    if config.parallel == "auto":
        return "single" if devices == 1 else "ddp"
    if config.parallel == "single" and devices > 1:
        raise ConfigurationError(f"parallel: single uses one GPU, and gpus gives {devices}")
    return config.parallel


def _optimizer_bytes(name: Any) -> int:
    """Of a trained parameter: AdamW's two moments."""
    if not name.startswith(("adamw", "paged_adamw")):
        raise UserError(f"trl.optim: the memory of {name!r} is not counted, only that of AdamW in its forms")
    return 2 if "8bit" in name else 8
