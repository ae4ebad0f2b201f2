"""The trainer's arguments, and how a configuration becomes them."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from transformers import PreTrainedModel, Trainer
from transformers.debug_utils import DebugOption
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_xla_available
from trl import DistillationConfig

from dopd_vl.common.errors import UserError, one_line
from dopd_vl.train_config import (
    DataSettings,
    ModelSettings,
    PrivilegeSettings,
    TrainConfig,
    TrainerSettings,
    check_freeze,
    check_sizes,
    colocated_length,
    key_of,
    leave_length_to_epochs,
)
from dopd_vl.training.teachers import quantized
from dopd_vl.training.trl_fields import as_floats, check_fields, check_inside, check_names_of_generation


@dataclass
class DopdConfig(PrivilegeSettings, TrainerSettings, DistillationConfig):  # type: ignore[misc]  # narrower than TRL's
    """TRL's `DistillationConfig` with what privileged distillation adds, `PrivilegeSettings` and `TrainerSettings`, and
    the defaults of `dopd-vl train`. Its length is `max_steps`, or `num_train_epochs` where that is given.

    `temperature` is that of sampling alone; distributions are compared at temperature 1. `bf16` defaults to on where
    there is a GPU and off elsewhere, `metric_for_best_model` to "accuracy" where one is needed.

    Raises:
        ConfigurationError: a field of TRL's cannot be kept to here, such as `beta` (the divergence is the objective's):
            `trl_fields.REFUSED` has them with their reasons.
    """

    seed: int = TrainConfig.seed
    max_prompt_length: int | None = DataSettings.max_prompt_length
    """tokens, of any view; a longer prompt is refused, never cut"""
    min_pixels: int | None = DataSettings.min_pixels
    """of an image; a smaller one is made larger"""
    max_pixels: int | None = DataSettings.max_pixels
    """of an image; a larger one is made smaller, unless a policy's own bound is another"""

    freeze: list[str] = field(default_factory=list)
    """parts of a vision-language student that do not learn: vision, projector, language"""

    def __post_init__(self) -> None:
        check_fields(vars(self))
        check_freeze(self.freeze, where="")
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        check_sizes(self)
        self.num_train_epochs = self.num_train_epochs or None  # 0.0: made from another DopdConfig, see below
        leave_length_to_epochs(self)
        if self.num_train_epochs is None:  # the Trainer reads it in any case
            self.num_train_epochs = 0.0 if self.max_steps > 0 else DistillationConfig.num_train_epochs
        PrivilegeSettings.__post_init__(self)
        self.fill_in()
        if self.use_vllm and self.vllm_mode == "colocate":
            self.vllm_max_model_length = colocated_length(
                self.max_prompt_length, self.max_completion_length or 0, self.vllm_max_model_length
            )
        if self.load_best_model_at_end or "best" in self.save_strategy or "plateau" in self.lr_scheduler_type:
            self.metric_for_best_model = self.metric_for_best_model or "accuracy"
        DistillationConfig.__post_init__(self)
        check_inside(vars(self))
        if not self.use_vllm:
            check_names_of_generation(vars(self))
        # transformers takes no 2 for 2.0.
        self.generation_kwargs = as_floats(cast(dict[str, Any], self.generation_kwargs or {}))
        vars(self).update(as_floats(vars(self)))
        _check_what_reads_them(self)
        # A process trains on one GPU, however many it sees; torch.nn.DataParallel is not for models like these.
        self._n_gpu = min(self.n_gpu, 1)


def _check_what_reads_them(settings: DopdConfig) -> None:
    """Whether settings that depend on the machine, or on other settings, are read by anything.

    Raises:
        ValueError: one is not; the message begins with its name.
    """
    optimizer = OptimizerNames(settings.optim).value
    reasons = []
    if settings.device.type == "cpu":
        on_gpus = {
            "fp16": settings.fp16,
            "ddp_timeout": settings.ddp_timeout != DopdConfig.ddp_timeout,
            "torch_empty_cache_steps": settings.torch_empty_cache_steps,
            "cache_implementation": str(settings.cache_implementation).startswith("offloaded"),
        }
        reasons += [(name, "needs a GPU, and none is visible here") for name, asked in on_gpus.items() if asked]
    if DebugOption.TPU_METRICS_DEBUG in settings.debug and not is_torch_xla_available():
        reasons.append(("debug", "needs a TPU, and none is visible here"))
    if settings.optim_target_modules is not None and not {"galore", "apollo"} & set(optimizer.split("_")):
        reasons.append(("optim_target_modules", f"is of GaLore and APOLLO, and optim={optimizer} trains every module"))
    if unread := _unread_by_optimizer(settings):
        reasons.append(("optim_args", f"is not all read: optim={optimizer} knows no {', '.join(unread)}"))
    if settings.gradient_checkpointing_kwargs and not settings.gradient_checkpointing:
        reasons.append(("gradient_checkpointing_kwargs", "needs gradient_checkpointing=True"))
    if settings.dataloader_num_workers == 0:
        of_workers = ("dataloader_persistent_workers", "dataloader_multiprocessing_context")
        reasons += [(name, "needs dataloader_num_workers above 0") for name in of_workers if getattr(settings, name)]
    for name, reason in reasons:
        raise ValueError(f"{name}={getattr(settings, name)} {reason}")


def _unread_by_optimizer(settings: DopdConfig) -> list[str]:
    """Names in `optim_args` that come to nothing, where the optimizer is torch's or transformers' own."""
    given = [pair.partition("=")[0] for pair in (settings.optim_args or "").replace(" ", "").split(",") if pair]
    if not given:
        return []
    with suppress(ImportError, ValueError):  # what is not installed, or cannot be had, `check_services` tells of
        model = cast(PreTrainedModel, torch.nn.Identity())
        kind, read = Trainer.get_optimizer_cls_and_kwargs(settings, model)
        if kind.__module__.startswith(("torch.optim", "transformers")):
            return [name for name in given if name not in read]
    return []


def dtype_of_teacher(asked: str = ModelSettings.teacher_dtype) -> str:
    """What "auto" means on this machine."""
    return {True: "bfloat16", False: "float32"}[torch.cuda.is_available()] if asked == "auto" else asked


def trainer_arguments(config: TrainConfig) -> DopdConfig:
    """The configuration's keys under `training` and `privilege` by their own names, the others by TRL's.

    Raises:
        UserError: TRL refuses them.
    """
    on_gpu = torch.cuda.is_available()
    teacher_dtype = dtype_of_teacher(config.model.teacher_dtype)
    attention = {"attn_implementation": config.model.attn_implementation} if config.model.attn_implementation else {}
    loop = asdict(config.training)
    for name in ("early_stopping_patience", "save_dtype"):  # the run folder's
        del loop[name]
    if loop["num_train_epochs"] is None:
        del loop["num_train_epochs"]
    own: dict[str, Any] = {
        **loop,
        "push_to_hub": False,  # what TRL pushes is the run folder, while it is written
        **asdict(config.privilege),
        "output_dir": config.output_dir,
        "seed": config.seed,
        "max_prompt_length": config.data.max_prompt_length,
        "min_pixels": config.data.min_pixels,
        "max_pixels": config.data.max_pixels,
        "freeze": config.model.freeze,
        "chat_template_kwargs": config.chat_template_kwargs or None,
        "trust_remote_code": config.model.trust_remote_code,
        "model_init_kwargs": {
            "dtype": "float32" if config.model.quantization is None else "bfloat16",  # of what is not quantised
            "use_safetensors": True,
            **attention,
            **quantized(config.model.quantization),
        },
        "teacher_model_init_kwargs": {
            "dtype": teacher_dtype,
            "use_safetensors": True,
            **attention,
            **quantized(config.model.teacher_quantization),
        },
        "eval_strategy": "steps" if config.data.eval is not None else "no",
        "save_strategy": "steps",
        "save_total_limit": None,  # RunFolder removes the oldest, and only when the newest is whole
        "use_cpu": not on_gpu,
        "disable_tqdm": True,
    }
    defaults = {"dataloader_pin_memory": on_gpu}
    try:
        return DopdConfig(**{**defaults, **config.trl, **own})
    except (TypeError, ValueError) as error:
        raise UserError(f"{key_of(str(error), config) or 'training'}: {one_line(error)}") from error
