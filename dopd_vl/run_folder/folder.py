"""What a run leaves in its folder and shows on the terminal."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import append_jsonl, read_rows
from dopd_vl.common.run_layout import (
    BEST_FOLDER,
    COMPLETE_FILE,
    FACTS_FILE,
    IMAGES_FOLDER,
    METRICS_FILE,
    REFUSED_FILE,
    ROLLOUTS_FILE,
    checkpoint_folder,
)
from dopd_vl.run_folder.checkpoints import keep_newest, mark_whole
from dopd_vl.run_folder.export import convert_weights
from dopd_vl.run_folder.kept_files import KeptFiles, stale
from dopd_vl.run_folder.kept_rollouts import rollout_records
from dopd_vl.views import Refusal

_TIMINGS = ("step_time", "runtime", "per_second", "total_flos")


class RunFolder(TrainerCallback):
    """Keeps metrics.jsonl, rollouts.jsonl, images/, refused.jsonl, the best student and marks of whole checkpoints."""

    def __init__(
        self, folder: Path, save_total_limit: int = 0, patience: int | None = None, save_dtype: str = "float32"
    ):
        """What a run leaves.

        Args:
            save_total_limit: whole checkpoints to keep; 0 keeps all.
            patience: evaluations in a row without a higher accuracy after which the run ends.
            save_dtype: of the weights of the best student.
        """
        self.folder = folder
        self.save_total_limit = save_total_limit
        self.kept_files = KeptFiles(folder)
        self.trainer: Any = None
        self.best: tuple[str, float] | None = None
        """the metric that chooses the best student, and its highest value so far; None: nothing was scored"""
        self.patience = patience
        self.save_dtype = save_dtype
        self.without_gain = 0
        """evaluations since the best"""
        self.stopped_early: str | None = None
        """in words, where patience ended the run"""
        self.made_a_step = False
        """whether this process came to the end of one"""
        self._refusals_written = 0

    def attach(self, trainer: Any) -> None:
        """Give the callback its trainer, for rollouts and for saving the best student."""
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Every rank must know the best so far: they save the next best together.
        rows = read_rows(self.folder / METRICS_FILE)
        for row in rows:
            self._is_better(row, args)
        self._stop_without_gain(state, control)
        if self.trainer.resumed_from is not None:
            mark = json.loads((self.trainer.resumed_from / COMPLETE_FILE).read_text(encoding="utf-8"))
            self.trainer.refused_before = mark["refused"][args.process_index]
            if state.is_world_process_zero:  # a run that was killed may not have come to it
                keep_newest(self.folder, self.save_total_limit)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.made_a_step = True
        # Sums since the last log are in no checkpoint: a run that goes on could not complete that row.
        control.should_log |= control.should_save

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        new = self.trainer.refusals[self._refusals_written :]
        self._refusals_written += len(new)
        refusals: list[Refusal] = gather_object(new)  # every rank logs, and passes over examples of its own
        if not state.is_world_process_zero:
            return
        metrics = {k: v for k, v in logs.items() if not any(word in k for word in _TIMINGS)}
        if set(metrics) - {"epoch", "train_loss"}:
            append_jsonl(self.folder / METRICS_FILE, [{"step": state.global_step, **metrics}])
        if "loss" in logs and self.trainer.kept_rollouts:
            records = rollout_records(self.trainer.kept_rollouts, self.trainer.renderer, self.folder / IMAGES_FOLDER)
            append_jsonl(self.folder / ROLLOUTS_FILE, [{"step": state.global_step, **record} for record in records])
        if refusals:
            rows = [{"step": state.global_step, "id": r.id, "reason": r.reason} for r in refusals]
            append_jsonl(self.folder / REFUSED_FILE, rows)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._is_better(kwargs["metrics"], args):
            assert self.best is not None
            self._save_best({"step": state.global_step, **dict([self.best])})
        elif self.best is None and self.patience is not None:
            raise UserError("training.early_stopping_patience: nothing in data.eval is scored; leave it out")
        self._stop_without_gain(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Of students that nothing compares, the last.
        if self.best is None and self.made_a_step and self.trainer.eval_dataset is not None:
            self._save_best({"step": state.global_step})

    def _save_best(self, facts: Mapping[str, Any]) -> None:
        save_whole(self.trainer, self.folder / BEST_FOLDER, facts, self.save_dtype)

    def _stop_without_gain(self, state: TrainerState, control: TrainerControl) -> None:
        if self.patience is not None and self.best is not None and self.without_gain >= self.patience:
            control.should_training_stop = True
            control.should_save = self.made_a_step
            name, value = self.best
            self.stopped_early = (
                f"stopped early at step {state.global_step}: no higher {name} than {value:.4g} in {self.without_gain} "
                "evaluations (training.early_stopping_patience)"
            )

    def _is_better(self, metrics: Mapping[str, Any], args: Any) -> bool:
        """Whether a student is the best so far, by the first of `eval_variants` that has an accuracy."""
        names = ["eval_accuracy", *(f"eval_{variant}_accuracy" for variant in args.eval_variants[1:])]
        found = next(((name, metrics[name]) for name in names if name in metrics), None)
        if found is None:
            return False
        if self.best is not None and found[0] == self.best[0] and found[1] <= self.best[1]:
            self.without_gain += 1
            return False
        self.best, self.without_gain = found, 0
        return True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Behind what every rank has written, and before anything older is removed.
        refused: list[int] = gather_object([self.trainer.refused])
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = checkpoint_folder(self.folder, state.global_step)
            self.kept_files.copy_into(checkpoint)
            mark_whole(checkpoint, {"step": state.global_step, "refused": refused})
            keep_newest(self.folder, self.save_total_limit)


def save_whole(trainer: Any, folder: Path, facts: Mapping[str, Any], dtype: str = "float32") -> None:
    """Save the student and its processor so that `folder` is the old one, or none for a moment, or a whole new one."""
    partial, old = folder.with_name(f".{folder.name}.partial"), stale(folder)
    if trainer.accelerator.is_main_process and partial.exists():
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    if trainer.accelerator.is_main_process:
        # A pickle that nothing reads, with paths of this machine.
        (partial / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if dtype != "float32":
            convert_weights(partial, dtype)
        mark_whole(partial, facts, FACTS_FILE)
        if folder.exists():
            if old.exists():
                shutil.rmtree(old)
            folder.rename(old)
        partial.rename(folder)
        if old.exists():
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()
