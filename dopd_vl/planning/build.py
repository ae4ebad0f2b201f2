"""From a configuration to a workload, a machine and its assumptions."""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.common.resources import shipped
from dopd_vl.core.projection import chunk_size_for
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import needs_teacher
from dopd_vl.planning.catalogue import gpu_of, model_config, model_shape
from dopd_vl.planning.compute import Machine
from dopd_vl.planning.config import PlanConfig
from dopd_vl.planning.objective_needs import longest_lesson, needs_of
from dopd_vl.planning.shapes import ModelShape
from dopd_vl.planning.workload import Parallel, ServedTeachers, TeacherHere, Workload
from dopd_vl.train_config import ModelSettings
from dopd_vl.training.checks import check, check_shards
from dopd_vl.training.teachers import served_needs

DEFAULT_GPU = "h100"
VLLM_SHARE = 0.3
"""TRL's default of `vllm_gpu_memory_utilization`."""
_IMAGE = 1024
"""Tokens of an image of unknown size."""
_PROMPT = 1024
"""Tokens of a prompt of unknown length."""


def workload_of(config: PlanConfig, on_gpu: bool = True) -> Workload:
    """The run that a configuration describes, on one of its devices, once `check` has found it sound.

    Raises:
        UserError: a setting is wrong, a model is unknown, or the two cannot be taught by one another.
    """
    devices, _ = devices_of(config)
    parallel = _parallel(config, devices)
    _check_quantised(config, parallel)
    objective, models = check(config, model_config, zero_stage=3 if parallel == "zero3" else 0)
    check_shards(config.training.shard_teacher, devices, parallel in ("zero2", "zero3"))
    names = config.model.in_process()
    shapes = {key: model_shape(names[key], key) for key in models}
    student, loop = shapes["model.student"], config.training
    top_k = min(max(loop.logged_top_k, getattr(objective, "top_k", 0)), student.vocabulary)
    teachers, served = _teachers(config.model, shapes), _served(config, objective, student.vocabulary)
    all_served = served is not None and not teachers
    scorings, full_support = needs_of(objective, loop.num_generations, top_k, all_served)
    default = config.data.max_prompt_length or _PROMPT
    dtype = config.model.teacher_dtype
    colocated = loop.use_vllm and config.trl.get("vllm_mode", "colocate") == "colocate"
    lora = config.model.lora
    evaluates = config.data.eval is not None
    shows_more = any(variant != "none" for variant in loop.eval_variants)
    image_tokens = {who: _image_tokens(config, student, who) for who in ("student", "teacher", "copy")}
    shown = default
    if config.data.max_prompt_length and student.vision:
        # No view is longer, so that those with smaller images are the shorter for it.
        of_images, most = (config.images * tokens for tokens in (image_tokens["student"], max(image_tokens.values())))
        shown = max(default - (most - of_images), min(default, of_images))
    prompt, privileged = config.prompt_tokens or shown, config.privileged_tokens or shown
    longest = longest_lesson(objective, prompt, privileged, loop.max_completion_length)
    return Workload(
        student=student,
        teachers=teachers,
        scorings=scorings,
        full_support=full_support,
        batch=loop.per_device_train_batch_size,
        accumulation=loop.gradient_accumulation_steps,
        group=loop.num_generations,
        scoring_batch=loop.scoring_batch_size or loop.per_device_train_batch_size,
        prompt_tokens=longest,
        privileged_tokens=privileged,
        response_tokens=loop.max_completion_length,
        images=config.images if student.vision else 0,
        image_tokens=image_tokens["student"],
        teacher_image_tokens=image_tokens["teacher"],
        copy_image_tokens=image_tokens["copy" if needs_teacher(objective) else "teacher"],
        parallel=parallel,
        devices=devices,
        on_gpu=on_gpu,
        lora_rank=lora.r if lora else 0,
        lora_modules=lora.target_modules if lora else "all-linear",
        frozen=tuple(dict.fromkeys(config.model.freeze)),
        quantization=config.model.quantization,
        served=served,
        teacher_bytes=4 if dtype == "float32" or (dtype == "auto" and not on_gpu) else 2,
        bf16=_in_bf16(config, on_gpu),
        optimizer_bytes=_optimizer_bytes(str(config.trl.get("optim", "adamw_torch_fused"))),
        checkpointing=loop.gradient_checkpointing,
        share_prompts=loop.share_prompts,
        chunk=_chunk(config, student.vocabulary, on_gpu),
        top_k=top_k,
        offload_scores=loop.offload_scores,
        uses_vllm=loop.use_vllm,
        vllm_share=config.trl.get("vllm_gpu_memory_utilization", VLLM_SHARE) if colocated else 0.0,
        vllm_sleeps=config.trl.get("vllm_enable_sleep_mode", False),
        vllm_length=config.trl.get("vllm_max_model_length") or default + loop.max_completion_length,
        shard_teacher=loop.shard_teacher,
        machines=config.machines,
        save_total_limit=loop.save_total_limit,
        saves=None if loop.max_steps < 0 else max(1, loop.max_steps // max(1, loop.save_steps)),
        eval_batch=loop.per_device_eval_batch_size if evaluates else 0,
        eval_prompt_tokens=max(prompt, privileged) if shows_more else prompt,
        eval_response_tokens=loop.eval_max_completion_length or loop.max_completion_length,
        full_share=config.full_share,
    )


def _teachers(settings: ModelSettings, shapes: Mapping[str, ModelShape]) -> tuple[TeacherHere, ...]:
    """Those in the trainer's process, of an objective that has any."""
    several = len(settings.teacher_names()) > 1
    quantised = {"model.teacher": ("default", settings.teacher_quantization)} | {
        f"model.teachers.{name}.model": (name, teacher.quantization) for name, teacher in settings.teachers.items()
    }
    return tuple(
        TeacherHere(shapes[key], name if several else "", bits)
        for key, (name, bits) in quantised.items()
        if key in shapes
    )


def _served(config: PlanConfig, objective: Objective, vocabulary: int) -> ServedTeachers | None:
    """What is asked of those that servers run; nobody is asked here."""
    names, here = config.model.teacher_names(), config.model.in_process()
    addresses = tuple(name for key, name in names.items() if key not in here)
    if not addresses or not needs_teacher(objective):
        return None
    loop, server = config.training, config.model.server
    needs = served_needs(objective, loop.num_generations, loop.logged_top_k, vocabulary)
    return ServedTeachers(addresses, needs.top_k, needs.cut, server.kind == "sglang", server.concurrency)


def _check_quantised(config: PlanConfig, parallel: Parallel) -> None:
    """Refuses what bitsandbytes' weights are not trained or counted with."""
    model = config.model
    if model.quantization is not None and parallel not in ("single", "ddp"):
        raise ConfigurationError(f"model.quantization: is not counted with {parallel}, only with single and ddp")
    if model.quantization is not None and config.training.use_vllm:
        # To hand the student to vLLM, TRL adds the adapters to its weights, rounds, and takes them off again.
        raise ConfigurationError("model.quantization: is not counted with training.use_vllm: true")
    if model.quantization is not None and config.training.bf16 is False:
        raise ConfigurationError("model.quantization: is not counted with training.bf16: false")
    of_teachers = {"model.teacher_quantization": model.teacher_quantization} | {
        f"model.teachers.{name}.quantization": teacher.quantization for name, teacher in model.teachers.items()
    }
    for key, bits in of_teachers.items():
        if bits is not None and parallel in ("zero2", "zero3"):
            raise ConfigurationError(f"{key}: is not counted with {parallel}, only with single, ddp and fsdp2")


def _chunk(config: PlanConfig, vocabulary: int, on_gpu: bool) -> int:
    given = config.training.logits_chunk_size
    if given != "auto":
        return given
    narrow = torch.bfloat16 if _in_bf16(config, on_gpu) else torch.float32
    return chunk_size_for("cuda" if on_gpu else "cpu", vocabulary, narrow)


def _in_bf16(config: PlanConfig, on_gpu: bool) -> bool:
    return on_gpu if config.training.bf16 is None else config.training.bf16


def check_arguments(config: PlanConfig) -> None:
    """Whether training takes the settings as its own arguments, whatever machine this is.

    Raises:
        UserError: it does not; the message names the key.
    """
    from dopd_vl.training.arguments import trainer_arguments  # imports TRL, which takes its time

    # What only a GPU has is for the machine of the run to refuse.
    elsewhere = {name: value for name, value in config.trl.items() if name not in ("fp16", "tf32")}
    trainer_arguments(replace(config, training=replace(config.training, bf16=None), trl=elsewhere))


def devices_of(config: PlanConfig) -> tuple[int, int]:
    """Number of GPUs, and bytes of memory of each."""
    number, gigabytes, name = _gpus(config)
    if number % config.machines:
        raise ConfigurationError(f"machines={config.machines} does not divide the {number} GPUs")
    return number, int(gigabytes * 1e9) if gigabytes is not None else gpu_of(name, "gpus").bytes


def _gpus(config: PlanConfig) -> tuple[int, float | None, str]:
    """Number, GB of each where they are given, and a name."""
    match = re.fullmatch(r"(\d+)x(?:(\d+(?:\.\d+)?)|([a-z].*))", config.gpus)
    if match is None or int(match[1]) < 1 or (match[2] is not None and float(match[2]) <= 0):
        raise ConfigurationError(
            f"gpus: {config.gpus!r} is neither NUMBERxNAME nor NUMBERxGB, e.g. 8xh100 or 8x80 (names are in "
            f"{shipped('data/gpus.yaml')})"
        )
    return int(match[1]), None if match[2] is None else float(match[2]), match[3] or DEFAULT_GPU


def machine_of(config: PlanConfig) -> Machine:
    """A GPU's throughput and bandwidth, by its data sheet unless given."""
    if config.tflops is not None and config.bandwidth is not None:
        return Machine(config.tflops, config.bandwidth, config.mfu, config.mbu)
    gpu = gpu_of(config.gpu, "gpu") if config.gpu else gpu_of(_gpus(config)[2], "gpus")
    return Machine(config.tflops or gpu.tflops, config.bandwidth or gpu.bandwidth_tb, config.mfu, config.mbu)


def _parallel(config: PlanConfig, devices: int) -> Parallel:
    if config.parallel == "auto":
        return "single" if devices == 1 else "ddp"
    if config.parallel == "single" and devices > 1:
        raise ConfigurationError(f"parallel: single uses one GPU, and gpus gives {devices}")
    if config.training.bf16 is False and config.parallel not in ("single", "ddp"):
        raise ConfigurationError(
            f"training.bf16: false is not counted with {config.parallel}, only with single and ddp"
        )
    return config.parallel


def _image_tokens(config: PlanConfig, student: ModelShape, policy: str) -> int:
    """Of an image as the student, the teacher or the student's copy is shown it."""
    own = getattr(config.privilege, f"{policy}_max_pixels")
    pixels = config.data.max_pixels if own is None else own
    if student.vision is None or pixels is None:
        return config.image_tokens or _IMAGE
    most = pixels // student.vision.pixels_a_token
    return config.image_tokens or most if own is None else min(config.image_tokens or most, most)


def _optimizer_bytes(name: str) -> int:
    """Of a trained parameter: AdamW's two moments."""
    if not name.startswith(("adamw", "paged_adamw")):
        raise UserError(f"trl.optim: the memory of {name!r} is not counted, only that of AdamW in its forms")
    return 2 if "8bit" in name else 8
