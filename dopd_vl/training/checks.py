"""Everything that can be known to be wrong before a model is loaded or a step is run: one clear line each.

`check` judges what a configuration says, for `dopd-vl train`, `plan` and `study` alike; `check_here` what a run meets
on the machine that it is about to begin on: its devices, the models' tokenizers, its data.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils.hub import hf_api

from dopd_vl.common.configuration import check_values
from dopd_vl.common.errors import ConfigurationError, UserError, nearest, one_line
from dopd_vl.common.resources import find_model
from dopd_vl.evaluation.verifiers import VERIFIERS, unscored_tasks
from dopd_vl.models import check_weights, reading, refuse_scaled_logits
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import POLICIES, Requirements, needs_teacher
from dopd_vl.objectives.build import build_objective
from dopd_vl.served.teacher import ServedTeacher
from dopd_vl.train_config import LoraSettings, ModelSettings, TrainConfig, check_sizes, colocated_length, key_of
from dopd_vl.training.data_checks import check_data, check_taught, first_with_images, shows_images
from dopd_vl.training.freezing import part_of
from dopd_vl.training.student_copies import check_copies
from dopd_vl.training.teachers import TEACHER, Teachers, compare, served_needs
from dopd_vl.views import VISION_PROCESSORS, bounded_views, check_bounds, check_family, load_views
from dopd_vl.views.rollouts import ROLLOUT_VIEWS, check_variant
from privileged import VARIANTS

VIEWS = ("plain", "privileged", *ROLLOUT_VIEWS, *VARIANTS)
ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d, torch.nn.Conv3d)
VLLM_MODES = ("colocate", "server")
Models = Mapping[str, PreTrainedConfig]
"""Key -> configuration: "model.student", and teachers in this process where any takes part"""


class Checked(NamedTuple):
    """What a sound configuration comes to."""

    objective: Objective
    models: Models
    """empty where they were not looked at"""


def check(
    config: TrainConfig, read_model: Callable[[str, str], PreTrainedConfig] | None = None, zero_stage: int = 0
) -> Checked:
    """Judge all that a configuration says, without data and whatever machine this is.

    Args:
        read_model: a model's configuration by its name and the key that names it. None: the models are not looked at,
            as of a study whose students are yet to be made.
        zero_stage: of DeepSpeed, where it is known that the run will use it.

    Raises:
        UserError: names the key.
    """
    objective, loop = build_objective(config.objective.name, config.objective.settings), config.training
    _check_variants(config)
    try:
        check_sizes(loop)
    except ValueError as error:
        raise ConfigurationError(f"training.{error}") from error
    if loop.early_stopping_patience is not None and config.data.eval is None:
        raise ConfigurationError("training.early_stopping_patience: needs data.eval, whose accuracy it goes by")
    _check_trl(config)
    _check_vllm(config)
    check_copies({source.policy for source in objective.sources()}, config.model.lora is not None, zero_stage)
    _check_teachers(config, objective)
    models: Models = {} if read_model is None else _read_models(config.model, needs_teacher(objective), read_model)
    _check_families(models)
    reads_images = not models or models["model.student"].model_type in VISION_PROCESSORS
    if config.model.freeze and not reads_images:
        raise ConfigurationError(
            "model.freeze: names parts of a vision-language model, but the student reads text only"
        )
    if models and config.model.lora is not None and not config.model.trust_remote_code:
        check_lora(config.model.lora, models["model.student"], config.model.freeze)
    check_bounds(config.privilege, reads_images)
    _check_requirements(config, objective, reads_images, None)
    return Checked(objective, models)


def check_here(
    config: TrainConfig,
    checked: Checked,
    datasets: Mapping[str, Dataset],
    served: Sequence[ServedTeacher] = (),
    say: Callable[[str], object] = lambda _: None,
) -> None:
    """Judge what a run meets on this machine.

    Args:
        datasets: by their keys, "data.train" and, where there is one, "data.eval".
        served: teachers, which are asked for a trial.
        say: is told what should be known and is no fault.

    Raises:
        UserError: names the key.
    """
    check_device(config)
    models, objective = checked.models, checked.objective
    paths = {key: find_model(name) for key, name in config.model.in_process().items() if key in models}
    remote = config.model.trust_remote_code
    if not remote:
        for key, path in paths.items():
            check_weights(path, key, models[key])
    student, options = models["model.student"], config.chat_template_kwargs
    views = load_views(paths["model.student"], student, "model.student", remote, options)
    for key, path in paths.items():
        if key != "model.student":
            check_same_ids(views.tokenizer.get_vocab(), token_ids(path, remote, key=key), key)
    bounded_views(views, config.data, config.privilege)
    check_taught(config.model, datasets["data.train"], objective)
    for key, dataset in datasets.items():
        check_data(dataset, key, config.model, models)
    if "language" in config.model.freeze and first_with_images(datasets["data.train"], lambda _: True) is None:
        raise UserError("model.freeze: beside a frozen language model images are learned from, and data.train has none")
    reads_images = student.model_type in VISION_PROCESSORS
    _check_requirements(config, objective, reads_images, datasets["data.train"])
    if served and needs_teacher(objective):
        loop, vocabulary = config.training, student.get_text_config().vocab_size
        needs = served_needs(objective, loop.num_generations, loop.logged_top_k, vocabulary)
        teachers = Teachers.of_settings(config.model)
        policies = dict(zip(config.model.teacher_names(), teachers.policies, strict=True))
        for teacher in served:
            sees_images = shows_images(datasets["data.train"], teachers, policies[teacher.server.key])
            if (told := compare(teacher, views, needs, sees_images)) is not None:
                say(told)


def _check_teachers(config: TrainConfig, objective: Objective) -> None:
    """Whether served teachers give what the objective needs, and there is a model to lie in shards."""
    if not needs_teacher(objective):
        return
    names, local = config.model.teacher_names(), config.model.in_process()
    if any(key not in local for key in names):
        try:
            served_needs(objective, config.training.num_generations, config.training.logged_top_k, sys.maxsize)
        except ValueError as error:
            raise ConfigurationError(f"objective.name: {error}") from error
    if config.training.shard_teacher:
        if len(local) == 1:
            raise ConfigurationError("training.shard_teacher: no teacher is in this process; leave it false")
        if config.model.teacher_quantization or any(t.quantization for t in config.model.teachers.values()):
            raise ConfigurationError("training.shard_teacher: a quantised teacher is whole on each GPU; leave it false")
    if len(names) > 1 and any(
        TEACHER in (pair.student.policy, pair.target.policy) for pair in Requirements.of(objective).pairs
    ):
        raise ConfigurationError(
            f"model.teachers: objective {objective.name!r} measures how far the teacher's whole distribution is from "
            "the student's, of one teacher alone"
        )


def _read_models(
    settings: ModelSettings, with_teachers: bool, read_model: Callable[[str, str], PreTrainedConfig]
) -> Models:
    models = {key: read_model(name, key) for key, name in settings.in_process(with_teachers).items()}
    if with_teachers and not settings.teacher_names():
        raise UserError("model.teacher: none given, and the objective needs a teacher larger than the student")
    vocabulary = models["model.student"].get_text_config().vocab_size
    for key, model in models.items():
        size = model.get_text_config().vocab_size
        if size != vocabulary:
            raise UserError(
                f"{key}: its vocabulary has {size} entries, the student's {vocabulary}; distillation compares "
                "whole distributions, so both must be equal (some families pad it differently from size to size)"
            )
    return models


def _check_families(models: Models) -> None:
    """Families that no view or no loss is written for."""
    for key, model in models.items():
        try:
            check_family(model)
            refuse_scaled_logits(model, "student" if key == "model.student" else "teacher")
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error


def _check_variants(config: TrainConfig) -> None:
    """Every variant named in the configuration must exist."""
    named = {f"privilege.{key}": [getattr(config.privilege, key)] for key in config.privilege.VARIANTS}
    named["training.eval_variants"] = config.training.eval_variants
    for key, variants in named.items():
        for variant in variants:
            try:
                check_variant(variant)
            except ValueError as error:
                raise ConfigurationError(f"{key}: {error}") from error


def check_device(config: TrainConfig) -> None:
    """Settings that only a GPU has are refused on a CPU."""
    teachers = {f"model.teachers.{name}.quantization": t.quantization for name, t in config.model.teachers.items()}
    quantised = {
        "model.quantization": config.model.quantization,
        "model.teacher_quantization": config.model.teacher_quantization,
        **teachers,
    }
    wants = {
        "training.use_vllm": config.training.use_vllm,  # of a server, too: NCCL brings it the weights
        "trl.fp16": bool(config.trl.get("fp16")),
        "model.attn_implementation": str(config.model.attn_implementation or "").startswith("flash"),
        "trl.optim": "8bit" in str(config.trl.get("optim", "")) or "paged" in str(config.trl.get("optim", "")),
    }
    if not torch.cuda.is_available():
        for key, wanted in wants.items():
            if wanted:
                raise UserError(f"{key}: needs a GPU, and none is visible here")
    for key, bits in quantised.items():
        if bits is not None and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(f"{key}: bitsandbytes is not installed; pip install 'dopd-vl[quantized]'")
    if config.training.use_vllm and importlib.util.find_spec("vllm") is None:
        raise UserError("training.use_vllm: vLLM is not installed; pip install 'dopd-vl[vllm]'")


def check_shards(shard_teacher: bool, processes: int, deepspeed: bool) -> None:
    """Whether a teacher can lie in shards, as `training.shard_teacher` asks.

    Raises:
        ConfigurationError: there is no process to share it with, or DeepSpeed decides.
    """
    if shard_teacher and deepspeed:
        raise ConfigurationError(
            "training.shard_teacher: DeepSpeed's own stage decides, and ZeRO-3 shards the teacher; leave it false"
        )
    if shard_teacher and processes == 1:
        raise ConfigurationError(
            "training.shard_teacher: one process has no other to share the teacher with; leave it false"
        )


def check_quantised(student: Any, teachers: Iterable[Any], fsdp: bool, zero_stage: int) -> None:
    """Whether models of few bits lie whole on each device, as they must.

    Raises:
        ConfigurationError: one would be cut into shards.
    """
    if getattr(student, "is_quantized", False) and (fsdp or zero_stage):
        how = "FSDP" if fsdp else "DeepSpeed"
        raise ConfigurationError(f"model.quantization: was not made for {how}; use one GPU or DDP")
    if any(getattr(teacher, "is_quantized", False) for teacher in teachers) and zero_stage:
        raise ConfigurationError("model.teacher_quantization: was not made for DeepSpeed; use one GPU, DDP or FSDP")


def check_lora(lora: LoraSettings, student: PreTrainedConfig, frozen: Collection[str] = ()) -> None:
    """Whether LoRA finds what it is to adapt, looked up among the student's modules without their weights.

    Args:
        frozen: parts of the student that adapters are kept out of.

    Raises:
        ConfigurationError: it does not, cannot adapt it, or would adapt the output head.
    """
    if lora.modules == ["all-linear"]:
        return
    key = "model.lora.target_modules"
    kind = AutoModelForImageTextToText if student.model_type in VISION_PROCESSORS else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(student)
    modules = dict(model.named_modules())
    known = {name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, ADAPTABLE)}
    for name in lora.modules:
        found = [module for path, module in modules.items() if path == name or path.endswith(f".{name}")]
        if not found:
            raise ConfigurationError(f"{key}: the student has no module {name!r}, {nearest(name, known)}")
        if not all(isinstance(module, ADAPTABLE) for module in found):
            raise ConfigurationError(f"{key}: {name!r} is no single layer that LoRA adapts, {nearest(name, known)}")
        if any(module is model.get_output_embeddings() for module in found):
            raise ConfigurationError(f"{key}: {name!r} is the output head, whose weights the losses read; leave it out")
    adapted = [path for path in modules if any(path == name or path.endswith(f".{name}") for name in lora.modules)]
    if {part_of(path) for path in adapted} <= set(frozen):
        raise ConfigurationError(f"{key}: all of it is frozen by model.freeze ({', '.join(frozen)})")


def peft_config(lora: LoraSettings) -> LoraConfig:
    """The settings as peft takes them."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.modules == ["all-linear"] else lora.modules,
        task_type="CAUSAL_LM",
    )


def check_services(arguments: Any) -> None:
    """Whether the optimizer and the trackers that a run asks for can be had on this machine.

    Args:
        arguments: a `DopdConfig`.

    Raises:
        ConfigurationError: one cannot; the message has the reason.
    """
    try:
        with suppress(ValueError):  # of a model with nothing in it
            Trainer.get_optimizer_cls_and_kwargs(arguments, cast(PreTrainedModel, torch.nn.Identity()))
    except ImportError as error:
        raise ConfigurationError(f"trl.optim: {one_line(error)}") from error
    try:
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"training.report_to: {one_line(error)}") from error
    if arguments.push_to_hub:
        try:
            hf_api().whoami(token=arguments.hub_token)
        except Exception as error:  # of whichever HTTP library the hub's client was built on
            reason = one_line(error)[:300]
            raise ConfigurationError(
                f"trl.push_to_hub: the hub is not to be written to from here ({reason})"
            ) from error


@contextmanager
def settings_told_of(config: TrainConfig, went_well: Callable[[], bool]) -> Iterator[None]:
    """What a library says of a setting becomes one line that names its key; any other error stays as it is.

    Args:
        went_well: whether the settings have proved sound by now, as by a first step.

    Raises:
        ConfigurationError: in place of what the library raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        key = None if went_well() else key_of(str(error), config)
        if key is None:
            raise
        raise ConfigurationError(f"{key}: {one_line(error)[:300]}") from error


def choose_metric_to_stop_by(settings: Any, callbacks: Iterable[Any], eval_dataset: Any) -> None:
    """With transformers' `EarlyStoppingCallback`, `metric_for_best_model` is the accuracy where none is named.

    Raises:
        UserError: there are no evaluations to stop by, or several sets of which none is named.
    """
    if not any(isinstance(one, EarlyStoppingCallback) or one is EarlyStoppingCallback for one in callbacks):
        return
    if eval_dataset is None or settings.eval_strategy == "no":
        raise UserError("callbacks: EarlyStoppingCallback goes by evaluations; give eval_dataset, and eval_strategy")
    if settings.metric_for_best_model is not None:
        return
    if isinstance(eval_dataset, Mapping):
        name = next(iter(eval_dataset))
        raise UserError(
            f"metric_for_best_model: several sets are evaluated; name what EarlyStoppingCallback goes by, such as "
            f"'{name}_accuracy'"
        )
    settings.metric_for_best_model, settings.greater_is_better = "accuracy", True


def _check_trl(config: TrainConfig) -> None:
    """`trl:` takes fields of TRL's configuration, of the right type, that have no key of their own here."""
    keys = {f.name: f.name for f in dataclasses.fields(config)}
    for section in ("model", "data", "privilege", "training"):
        keys |= {f.name: f"{section}.{f.name}" for f in dataclasses.fields(getattr(config, section))}
    for name in config.trl:
        if name in keys:
            raise ConfigurationError(f"trl.{name}: has a key of its own, {keys[name]}; set it there")
    if config.trl:
        from dopd_vl.training.arguments import DopdConfig  # imports TRL, which takes its time
        from dopd_vl.training.trl_fields import ONLY_FROM_PYTHON, check_fields, check_names_of_generation

        for name in config.trl:
            if name in ONLY_FROM_PYTHON:
                raise ConfigurationError(f"trl.{name}: {ONLY_FROM_PYTHON[name]}")
        check_values(DopdConfig, config.trl, "trl")
        check_fields(config.trl, "trl.")
        if not config.training.use_vllm:
            check_names_of_generation(config.trl, "trl.")


def _check_vllm(config: TrainConfig) -> None:
    """Settings that vLLM's rollouts cannot be drawn with."""
    if not config.training.use_vllm:
        return
    mode, share = config.trl.get("vllm_mode", "colocate"), config.trl.get("vllm_gpu_memory_utilization", 1)
    if mode not in VLLM_MODES:
        raise ConfigurationError(f"trl.vllm_mode: unknown mode {mode!r}, {nearest(str(mode), VLLM_MODES)}")
    if not 0 < share <= 1:
        raise ConfigurationError(f"trl.vllm_gpu_memory_utilization: {share} must be above 0 and at most 1")
    if "seed" in (config.trl.get("generation_kwargs") or {}):
        raise ConfigurationError(
            "trl.generation_kwargs.seed: vLLM would draw every rollout of a step with it, and the rollouts of one "
            "prompt would be equal; leave it out"
        )
    if config.model.quantization is not None:
        raise ConfigurationError(
            "model.quantization: vLLM is handed the student's weights after each step, and those of few bits would be "
            "rounded anew each time; leave training.use_vllm false"
        )
    if mode == "colocate":
        length = config.trl.get("vllm_max_model_length")
        colocated_length(config.data.max_prompt_length, config.training.max_completion_length, length)


def check_same_ids(student: dict[str, int] | None, teacher: dict[str, int] | None, key: str) -> None:
    """Whether two tokenizers, as `token_ids` has them, agree; where one is missing the sizes alone were compared.

    Raises:
        UserError: they do not; the message begins with `key`.
    """
    if None not in (student, teacher) and student != teacher:
        raise UserError(f"{key}: its tokenizer gives tokens other ids than the student's; they must be the same")


def token_ids(
    name: str, trust_remote_code: bool, revision: str | None = None, key: str = "model.teacher"
) -> dict[str, int] | None:
    """The id of every token of a model's tokenizer; None where it has none. Errors begin with `key`."""
    kwargs = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
    try:
        with reading(key, name):
            return AutoTokenizer.from_pretrained(name, **kwargs).get_vocab()
    except UserError:
        if any(Path(name).glob("*token*")):  # it is there, and damaged
            raise
        return None  # none: its vocabulary size was compared


def _check_requirements(config: TrainConfig, objective: Objective, reads_images: bool, data: Dataset | None) -> None:
    try:
        variant, reward = config.privilege.student_variant, config.training.task_reward
        check_requirements(objective, config.training.num_generations, reads_images, data, variant, reward)
    except ValueError as error:
        raise UserError(f"objective.name: {error}") from error


def check_requirements(
    objective: Objective,
    num_generations: int,
    reads_images: bool,
    dataset: Any,
    student_variant: str = "none",
    task_reward: float = 0.0,
) -> None:
    """Raises: ValueError: the objective needs what is not there; the message says what."""
    name, needs = objective.name, Requirements.of(objective)
    for source in objective.sources():
        if source.policy not in POLICIES:
            raise ValueError(f"objective {name!r} asks for policy {source.policy!r}, known: {', '.join(POLICIES)}")
        if source.view not in VIEWS:
            raise ValueError(f"objective {name!r} asks for view {source.view!r}, {nearest(source.view, VIEWS)}")
        if not reads_images and source.view in VARIANTS and VARIANTS[source.view].modality == "vision":
            raise ValueError(
                f"objective {name!r} is about images (view {source.view!r}), but the student reads text only"
            )
    if needs.student_variant not in VARIANTS:
        known = nearest(needs.student_variant, VARIANTS)
        raise ValueError(f"objective {name!r} shows the student variant {needs.student_variant!r}, {known}")
    if "none" not in (needs.student_variant, student_variant) and needs.student_variant != student_variant:
        raise ValueError(
            f"objective {name!r} shows the student {needs.student_variant!r}, and privilege.student_variant asks for "
            f"{student_variant!r}; leave one of them out"
        )
    if task_reward and num_generations < 2 * len(needs.lessons):
        raise ValueError(
            f"training.task_reward={task_reward} compares rollouts of one prompt: num_generations={num_generations} "
            f"must be at least {2 * len(needs.lessons)}"
        )
    if num_generations < needs.needs_siblings:
        raise ValueError(
            f"objective {name!r} compares rollouts of one prompt: num_generations={num_generations} must be at least "
            f"{needs.needs_siblings}"
        )
    if num_generations % len(needs.lessons):
        raise ValueError(
            f"objective {name!r} learns on {len(needs.lessons)} sequences a rollout, which are rows of the batch: "
            f"num_generations={num_generations} must be a multiple of it"
        )
    if needs.needs_images and not reads_images:
        raise ValueError(f"objective {name!r} is about images, but the student reads text only")
    judges = needs.needs_verifier or task_reward > 0.0
    if judges and isinstance(dataset, Dataset):  # of a stream it is known example by example
        who = f"objective {name!r}" if needs.needs_verifier else "training.task_reward"
        unknown = sorted({str(task) for task in dataset.unique("task")} - set(VERIFIERS))
        if unknown:
            raise ValueError(f"{who} needs a verdict on every rollout; no verifier for task {unknown[0]!r}")
        for task, reason in unscored_tasks().items():
            if task in dataset.unique("task"):
                raise ValueError(f"{who} needs a verdict on every rollout; task {task!r}: {reason}")
