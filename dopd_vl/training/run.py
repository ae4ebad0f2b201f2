"""One training run from its configuration: checks, models, trainer, run folder."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Image, List
from peft import LoraConfig
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from dopd_vl.configuration import as_yaml
from dopd_vl.errors import UserError
from dopd_vl.evaluation.code import allow_code
from dopd_vl.files import read_jsonl, write_json
from dopd_vl.resources import find_model
from dopd_vl.training import preflight
from dopd_vl.training.arguments import DopdConfig
from dopd_vl.training.callbacks import METRICS_FILE, ProgressBar, RunFolder, save_whole, whole_checkpoints
from dopd_vl.training.config import LoraSettings, TrainConfig
from dopd_vl.training.metric_rows import RunFacts
from dopd_vl.training.requirements import check_requirements, needs_teacher, say_what_is_not_scored
from dopd_vl.training.trainer import DopdTrainer
from dopd_vl.training.watch import Watch
from dopd_vl.views import VISION_PROCESSORS
from privileged.dataset import load_privileged
from privileged.journal import write_atomically

CONFIG_FILE = "config.yaml"
FINGERPRINT_FILE = "fingerprint.json"
STUDENT_FOLDER = "student"

_MAY_CHANGE = ("resume", "output_dir", "health")
"""Keys that a run may be taken up again with another value of."""


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    folder: Path
    student: Path
    """the student after the last step, with its processor"""
    metrics: list[dict[str, Any]]
    """the rows of metrics.jsonl"""


def run_training(config: TrainConfig, title: str | None = None, console: Console | None = None) -> RunResult:
    """Train as the configuration says and leave a run folder.

    Raises:
        UserError: anything that the user can mend; nothing was trained. Or an alarm ended the run, as its configuration
            asked (`health.on_alarm: stop`): its folder holds what was trained, but no student/.
    """
    objective = preflight.build_objective(config)
    preflight.check_variants(config)
    preflight.check_device(config)
    arguments = trainer_arguments(config)
    student_config, teacher_config = preflight.check_models(config.model, needs_teacher(objective))
    if not config.data.train:
        raise UserError("data.train: no data set given; `dopd-vl prepare` writes one")
    models = {"student": student_config} | ({} if teacher_config is None else {"teacher": teacher_config})
    if config.allow_code:
        allow_code()
    train = load_examples(config.data.train)
    preflight.check_data(train, "data.train", models)
    if arguments.process_index == 0:
        say_what_is_not_scored(train, console or Console(stderr=True))
    try:
        check_requirements(
            objective, config.training.num_generations, student_config.model_type in VISION_PROCESSORS, train
        )
    except ValueError as error:
        raise UserError(f"objective.name: {error}") from error
    held_out = None
    if config.data.eval is not None:
        held_out = load_examples(config.data.eval, config.data.eval_size)
        preflight.check_data(held_out, "data.eval", models)

    folder = Path(config.output_dir)
    checkpoint = _open_folder_together(folder, config, train, arguments.process_index)
    arguments.eval_on_start = held_out is not None and checkpoint is None
    run_folder = RunFolder(folder)
    terminal = console or Console()
    facts = RunFacts.of(config, objective, arguments.world_size)
    watch = Watch(folder, facts, config.health, terminal)
    teacher = config.model.teacher if needs_teacher(objective) else None
    trainer = DopdTrainer(
        model=find_model(config.model.student),
        teacher_model=find_model(teacher) if teacher is not None else None,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        objective=objective,
        peft_config=_peft_config(config.model.lora),
        callbacks=[run_folder, ProgressBar(title or f"train {config.objective.name}", terminal), watch],
    )
    run_folder.attach(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watch.stopped is not None:
        raise UserError(
            f"{folder}: stopped at step {watch.stopped.step} by health.on_alarm ({watch.stopped.kind}): "
            f"{watch.stopped.message}. --resume true goes on all the same"
        )
    student = folder / STUDENT_FOLDER
    save_whole(trainer, student, {"step": trainer.state.global_step, "objective": config.objective.name})
    return RunResult(folder, student, read_jsonl(folder / METRICS_FILE))


def load_examples(folder: str, size: int | None = None) -> Dataset:
    """A privileged data set whose images stay encoded until a view needs them, so that a bad one spoils one example."""
    dataset = load_privileged(folder)
    if size is not None:
        dataset = dataset.select(range(min(size, len(dataset))))
    if "images" in dataset.column_names:
        dataset = dataset.cast_column("images", List(Image(decode=False)))
    return dataset


def trainer_arguments(config: TrainConfig) -> DopdConfig:
    loop = config.training
    evaluates = config.data.eval is not None
    on_gpu = torch.cuda.is_available()
    teacher_dtype = config.model.teacher_dtype
    if teacher_dtype == "auto":
        teacher_dtype = "bfloat16" if on_gpu else "float32"
    attention = {"attn_implementation": config.model.attn_implementation} if config.model.attn_implementation else {}
    own: dict[str, Any] = {
        **asdict(loop),
        "output_dir": config.output_dir,
        "seed": config.seed,
        "teacher_variant": config.privilege.teacher_variant,
        "student_variant": config.privilege.student_variant,
        "learner_variant": config.privilege.learner_variant,
        "max_prompt_length": config.data.max_prompt_length,
        "chat_template_kwargs": config.chat_template_kwargs or None,
        "trust_remote_code": config.model.trust_remote_code,
        "model_init_kwargs": {"dtype": "float32", **attention},
        "teacher_model_init_kwargs": {"dtype": teacher_dtype, **attention},
        "eval_strategy": "steps" if evaluates else "no",
        "save_strategy": "steps",
        "use_cpu": not on_gpu,
        "disable_tqdm": True,
    }
    preflight.check_trl_fields(config.trl, own, DopdConfig)
    defaults = {"report_to": "none", "dataloader_pin_memory": on_gpu}
    try:
        return DopdConfig(**{**defaults, **config.trl, **own})
    except (TypeError, ValueError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error


def _peft_config(lora: LoraSettings | None) -> LoraConfig | None:
    if lora is None:
        return None
    names = [name.strip() for name in lora.target_modules.split(",")]
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names[0] if len(names) == 1 else names,
        task_type="CAUSAL_LM",
    )


def _open_folder_together(folder: Path, config: TrainConfig, train: Dataset, rank: int) -> Path | None:
    """`_open_folder` by the first process; the others hear what came of it: its new run is no old one to them."""
    outcome: Path | UserError | None = None
    if rank == 0:
        try:
            outcome = _open_folder(folder, config, train)
        except UserError as error:
            outcome = error
    outcome = broadcast_object_list([outcome])[0]
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def _open_folder(folder: Path, config: TrainConfig, train: Dataset) -> Path | None:
    """Prepare the run folder; with `resume`, the checkpoint to go on from, if there is one."""
    fingerprint = _fingerprint(config, train)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file")
    if (folder / CONFIG_FILE).exists():
        if not config.resume:
            raise UserError(f"output_dir: {folder} already holds a run; give --resume true to go on, or another folder")
        _check_same_run(folder, config, fingerprint)
        checkpoints = whole_checkpoints(folder)
        return checkpoints[-1] if checkpoints else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FINGERPRINT_FILE, fingerprint)
        write_atomically(folder / CONFIG_FILE, as_yaml(config))
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {folder} ({error.strerror})") from error
    return None


def _fingerprint(config: TrainConfig, train: Dataset) -> dict[str, str]:
    """What must not change between the parts of one run."""
    ids = hashlib.sha256()
    for batch in train.select_columns(["id", "answer"]).with_format(None).iter(batch_size=10_000):
        ids.update(json.dumps([batch["id"], batch["answer"]]).encode())
    models = {
        name: hashlib.sha256(
            json.dumps(preflight.load_config(path, name).to_dict(), sort_keys=True, default=str).encode()
        )
        for name, path in (("model.student", config.model.student), ("model.teacher", config.model.teacher))
        if path is not None
    }
    return {"data.train": ids.hexdigest(), **{name: digest.hexdigest() for name, digest in models.items()}}


def _check_same_run(folder: Path, config: TrainConfig, fingerprint: dict[str, str]) -> None:
    before = _flat(yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    now = _flat(yaml.safe_load(as_yaml(config)))
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and k.split(".")[0] not in _MAY_CHANGE]
    if changed:
        key = changed[0]
        raise UserError(
            f"resume: {key} was {before.get(key)!r} in {folder / CONFIG_FILE} and is {now.get(key)!r} now; a run goes "
            "on with the settings that it began with"
        )
    saved = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    for key, digest in fingerprint.items():
        if saved.get(key) != digest:
            raise UserError(f"resume: the content of {key} is not what the run in {folder} began with")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()}
