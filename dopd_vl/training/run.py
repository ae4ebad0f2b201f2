"""One training run from its configuration: checks, models, trainer, run folder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import disk_told_of, read_jsonl
from dopd_vl.common.hub import open_repository, push_folder
from dopd_vl.common.resources import find_model
from dopd_vl.common.run_layout import METRICS_FILE, STUDENT_FOLDER
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.evaluation.code import allow_code
from dopd_vl.health.rows import RunFacts
from dopd_vl.health.watch import Watch
from dopd_vl.models import load_config
from dopd_vl.objectives.base import needs_teacher
from dopd_vl.run_folder.fingerprint import Fingerprint, fingerprint_of
from dopd_vl.run_folder.folder import RunFolder, save_whole
from dopd_vl.run_folder.resume import opened_on_every_rank
from dopd_vl.served.teacher import ServedTeacher
from dopd_vl.train_config import TrainConfig
from dopd_vl.training import vllm_rollouts
from dopd_vl.training.arguments import trainer_arguments
from dopd_vl.training.checks import (
    check,
    check_here,
    check_services,
    peft_config,
    settings_told_of,
)
from dopd_vl.training.data_checks import check_steps, length_of, say_what_is_not_scored
from dopd_vl.training.progress import ProgressBar
from dopd_vl.training.teachers import teachers_of
from dopd_vl.training.trackers import check_trackers
from dopd_vl.training.trainer import DopdTrainer
from privileged.dataset import load_privileged

WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json"]
"""Files of an earlier student that would be taken for the new one's."""


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    folder: Path
    student: Path
    """the student after the last step, with its processor"""
    metrics: list[dict[str, Any]]
    """the rows of metrics.jsonl"""
    best_by: str | None = None
    """the metric that chose best/; None: nothing was scored, and it is the student after the last step"""


def run_training(config: TrainConfig, title: str | None = None, console: Console | None = None) -> RunResult:
    """Train as the configuration says and leave a run folder.

    Raises:
        UserError: anything that the user can mend; nothing was trained. Or an alarm ended the run, as its configuration
            asked (`health.on_alarm: stop`): its folder holds what was trained, but no student/.
    """
    checked = check(config, partial(load_config, trust_remote_code=config.model.trust_remote_code))
    objective, models = checked
    check_trackers(config.training.report_to)
    if not config.data.train:
        raise UserError("data.train: no data set given; `dopd-vl prepare` writes one")
    if config.allow_code:
        allow_code()
    datasets = {"data.train": load_examples(config.data.train)}
    if config.data.eval is not None:
        datasets["data.eval"] = load_examples(config.data.eval, config.data.eval_size)
    terminal = console or Terminal()
    default, others = teachers_of(config.model) if needs_teacher(objective) else (None, {})
    served = [one for one in (default, *(other.model for other in others.values())) if isinstance(one, ServedTeacher)]
    check_here(config, checked, datasets, served, partial(tell, terminal))
    arguments = trainer_arguments(config)
    check_steps(arguments, len(datasets["data.train"]), arguments.world_size, "data.train")
    check_services(arguments)
    hub = config.training.push_to_hub
    if hub is not None:
        open_repository(hub, "model", "training.push_to_hub")
    if arguments.process_index == 0:
        say_what_is_not_scored(datasets["data.train"], console or Terminal(stderr=True))
    names = config.model.in_process()

    def fingerprint() -> Fingerprint:
        described = {key: (names[key], model_config) for key, model_config in models.items()}
        asked = {teacher.server.key: teacher.model for teacher in served}
        return fingerprint_of(datasets, described, arguments.world_size, asked)

    folder = Path(config.output_dir)
    loop = config.training
    run_folder = RunFolder(folder, loop.save_total_limit, loop.early_stopping_patience, loop.save_dtype)
    stays = "whole checkpoints stay; when it can be written again, go on with --resume true"
    vllm_rollouts.check_server(arguments)
    say = partial(tell, terminal)
    with (
        opened_on_every_rank(config, fingerprint, arguments.process_index, say) as checkpoint,
        settings_told_of(config, lambda: run_folder.made_a_step),
        disk_told_of(folder, stays),
        vllm_rollouts.server_told_of(arguments, "whole checkpoints stay; start it anew and go on with --resume true"),
    ):
        if arguments.process_index == 0:
            say(f"{folder}: {length_of(arguments, len(datasets['data.train']), arguments.world_size)}")
        arguments.eval_on_start = config.data.eval is not None and checkpoint is None
        watch = Watch(folder, RunFacts.of(config, objective, arguments.world_size), config.health, terminal)
        trainer = DopdTrainer(
            model=find_model(config.model.student),
            teacher_model=default,
            teachers=others,
            args=arguments,
            train_dataset=datasets["data.train"],
            eval_dataset=datasets.get("data.eval"),
            objective=objective,
            peft_config=None if config.model.lora is None else peft_config(config.model.lora),
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
        if run_folder.stopped_early is not None and arguments.process_index == 0:
            say(f"{folder}: {run_folder.stopped_early}")
        student = folder / STUDENT_FOLDER
        facts = {"step": trainer.state.global_step, "objective": config.objective.name}
        save_whole(trainer, student, facts, loop.save_dtype)
        if arguments.process_index == 0:
            run_folder.kept_files.write_digests()
        if hub is not None and arguments.process_index == 0:
            say(f"{student}: pushed to {push_folder(student, hub, 'model', 'training.push_to_hub', ['*'], WEIGHTS)}")
        best_by = None if run_folder.best is None else run_folder.best[0]
        return RunResult(folder, student, read_jsonl(folder / METRICS_FILE), best_by)


def load_examples(folder: str, size: int | None = None) -> Dataset:
    """A privileged data set whose images stay encoded until a view needs them, so that a bad one spoils one example."""
    dataset = load_privileged(folder)
    if size is not None:
        dataset = dataset.select(range(min(size, len(dataset))))
    if "images" in dataset.column_names:
        dataset = dataset.cast_column("images", List(Image(decode=False)))
    return dataset
