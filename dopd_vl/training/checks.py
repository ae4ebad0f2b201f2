"""What can be known to be wrong before a model is loaded or a step is run: one clear line each."""

import dataclasses
import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedConfig

from dopd_vl.common.errors import ConfigurationError, UserError, nearest
from dopd_vl.common.resources import find_model
from dopd_vl.evaluation.verifiers import VERIFIERS, unscored_tasks
from dopd_vl.models import load_config
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import POLICIES, Requirements
from dopd_vl.train_config import DEFAULT_VARIANT, ModelSettings, TrainConfig
from dopd_vl.views import VISION_PROCESSORS
from dopd_vl.views.rollouts import SIBLING_VIEW
from privileged import VARIANTS


def check_models(settings: ModelSettings, needs_teacher: bool) -> tuple[PreTrainedConfig, PreTrainedConfig | None]:
    """Configurations of student and teacher, which must share vocabulary and token ids."""
    student = load_config(settings.student, "model.student", settings.trust_remote_code)
    if not needs_teacher:
        return student, None
    if settings.teacher is None:
        raise UserError("model.teacher: none given, and the objective needs a teacher larger than the student")
    teacher = load_config(settings.teacher, "model.teacher", settings.trust_remote_code)
    sizes = [config.get_text_config().vocab_size for config in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"model.teacher: its vocabulary has {sizes[1]} entries, the student's {sizes[0]}; distillation compares "
            "whole distributions, so both must be equal (some families pad it differently from size to size)"
        )
    ids = [_token_ids(find_model(name), settings.trust_remote_code) for name in (settings.student, settings.teacher)]
    if ids[0] is not None and ids[1] is not None and ids[0] != ids[1]:
        raise UserError("model.teacher: its tokenizer gives tokens other ids than the student's; they must be the same")
    return student, teacher


def check_data(dataset: Dataset, key: str, configs: Mapping[str, PreTrainedConfig]) -> None:
    """The data must be readable by both models and scorable."""
    if len(dataset) == 0:
        raise UserError(f"{key}: the data set is empty")
    unknown = sorted(set(dataset.unique("task")) - set(VERIFIERS))
    if unknown:
        raise UserError(f"{key}: no verifier for task {unknown[0]!r}, known: {', '.join(VERIFIERS)}")
    with_images = _first_with_images(dataset)
    for role, config in configs.items():
        if with_images is not None and config.model_type not in VISION_PROCESSORS:
            raise UserError(
                f"{key}: example {with_images!r} has images, but model.{role} is a text-only model "
                f"({config.model_type}); use a vision-language model or a text data set"
            )


def check_variants(config: TrainConfig) -> None:
    """Every variant named in the configuration must exist."""
    named = {
        "privilege.teacher_variant": [config.privilege.teacher_variant],
        "privilege.student_variant": [config.privilege.student_variant],
        "privilege.learner_variant": [config.privilege.learner_variant],
        "training.eval_variants": config.training.eval_variants,
    }
    for key, variants in named.items():
        for variant in variants:
            if variant != DEFAULT_VARIANT and variant not in VARIANTS:
                known = [DEFAULT_VARIANT, *VARIANTS]
                raise ConfigurationError(f"{key}: unknown variant {variant!r}, {nearest(variant, known)}")


def check_device(config: TrainConfig) -> None:
    """Settings that only a GPU has are refused on a CPU."""
    wants = {
        "training.use_vllm": config.training.use_vllm,  # of a server, too: NCCL brings it the weights
        "training.bf16": bool(config.training.bf16),
        "trl.fp16": bool(config.trl.get("fp16")),
        "model.attn_implementation": str(config.model.attn_implementation or "").startswith("flash"),
        "trl.optim": "8bit" in str(config.trl.get("optim", "")) or "paged" in str(config.trl.get("optim", "")),
    }
    if not torch.cuda.is_available():
        for key, wanted in wants.items():
            if wanted:
                raise UserError(f"{key}: needs a GPU, and none is visible here")
    if config.training.use_vllm and importlib.util.find_spec("vllm") is None:
        raise UserError("training.use_vllm: vLLM is not installed; pip install 'dopd-vl[vllm]'")


def check_trl_fields(fields: Mapping[str, Any], own: Iterable[str], known: type) -> None:
    """`trl:` takes fields of TRL's configuration that have no key of their own here."""
    names = [f.name for f in dataclasses.fields(known) if f.init]
    for name in fields:
        if name in own:
            raise ConfigurationError(f"trl.{name}: has a key of its own in this configuration; set it there")
        if name not in names:
            raise ConfigurationError(f"trl.{name}: unknown field of trl.DistillationConfig, {nearest(name, names)}")


def _first_with_images(dataset: Dataset) -> str | None:
    """The id of the first example with an image, without decoding any."""
    if "images" not in dataset.column_names:
        return None
    table = dataset.select_columns(["id", "images"]).with_format("arrow")
    for batch in table.iter(batch_size=1000):
        counts = batch["images"].combine_chunks().value_lengths().to_pylist()
        for identifier, count in zip(batch["id"].to_pylist(), counts, strict=True):
            if count:
                return str(identifier)
    return None


def _token_ids(name: str, trust_remote_code: bool) -> dict[str, int] | None:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code).get_vocab()
    except (OSError, ValueError):  # a teacher folder without a tokenizer: its vocabulary size was compared
        return None


VIEWS = ("plain", "privileged", SIBLING_VIEW, *VARIANTS)


def check_requirements(objective: Objective, num_generations: int, reads_images: bool, dataset: Any) -> None:
    """Raises: ValueError: the objective needs what is not there; the message says what."""
    name, needs = objective.name, Requirements.of(objective)
    for source in objective.sources():
        if source.policy not in POLICIES:
            raise ValueError(f"objective {name!r} asks for policy {source.policy!r}, known: {', '.join(POLICIES)}")
        if source.view not in VIEWS:
            raise ValueError(f"objective {name!r} asks for view {source.view!r}, {nearest(source.view, VIEWS)}")
    if num_generations < needs.needs_siblings:
        raise ValueError(
            f"objective {name!r} compares rollouts of one prompt: num_generations={num_generations} must be at least "
            f"{needs.needs_siblings}"
        )
    if needs.needs_images and not reads_images:
        raise ValueError(f"objective {name!r} is about images, but the student reads text only")
    if needs.needs_verifier and dataset is not None:
        unknown = sorted({str(task) for task in dataset.unique("task")} - set(VERIFIERS))
        if unknown:
            raise ValueError(
                f"objective {name!r} needs a verdict on every rollout; no verifier for task {unknown[0]!r}"
            )
        for task, reason in unscored_tasks().items():
            if task in dataset.unique("task"):
                raise ValueError(f"objective {name!r} needs a verdict on every rollout; task {task!r}: {reason}")


def say_what_is_not_scored(dataset: Any, console: Console) -> None:
    """One line for each task in the data whose responses get no verdict."""
    present = set(dataset.unique("task"))
    for task, reason in unscored_tasks().items():
        if task in present:
            console.print(f"responses to tasks {task!r} are not scored: {reason}", highlight=False, soft_wrap=True)
