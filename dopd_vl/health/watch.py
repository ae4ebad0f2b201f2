"""The alarms of a run as it goes: said once each, kept in alarms.jsonl, and the run's end where that is asked for."""

from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dopd_vl.common.files import append_jsonl, iterate_rows, read_rows, write_json
from dopd_vl.common.run_layout import ALARMS_FILE, METRICS_FILE, STOPPED_FILE
from dopd_vl.common.terminal import tell
from dopd_vl.health.alarms import Alarm, alarms_at
from dopd_vl.health.rows import History, RunFacts
from dopd_vl.train_config import HealthSettings


class Watch(TrainerCallback):
    """Judges each row as it is logged, by the rows before it.

    With `health.on_alarm: stop` the first new alarm ends the run: with a checkpoint of its last step, or, where the
    loss is NaN, without one, so that the last checkpoint stays one that can be used. What was said before a checkpoint
    is not said again, and stops nothing again, when the run goes on from it.
    """

    def __init__(self, folder: Path, facts: RunFacts, settings: HealthSettings, console: Console):
        self.folder, self.facts, self.settings, self.console = folder, facts, settings, console
        self.stopped: Alarm | None = None
        """what ended the run, the same on every rank"""
        self._rows = History()
        self._told: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        (self.folder / STOPPED_FILE).unlink(missing_ok=True)
        self._told = {row["kind"] for row in read_rows(self.folder / ALARMS_FILE)}
        self._rows = History(row for _, row in iterate_rows(self.folder / METRICS_FILE))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        if self.settings.on_alarm == "ignore" or "loss" not in logs:
            return
        first = self._tell(state.global_step, logs) if state.is_world_process_zero else None
        if self.settings.on_alarm != "stop":
            return
        # One rank decides: sums in another order may lie on either side of a threshold.
        first = broadcast_object_list([first])[0]
        if first is None or state.global_step >= state.max_steps:
            return
        self.stopped = first
        control.should_training_stop = True
        control.should_save = first.kind != "non_finite"
        if first.kind == "non_finite":
            control.should_evaluate = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped is not None and state.is_world_process_zero:
            write_json(self.folder / STOPPED_FILE, self.stopped._asdict())

    def _tell(self, step: int, logs: dict[str, Any]) -> Alarm | None:
        """Say what is new at this step; the first of it."""
        if not self._rows.add({"step": step, **logs}):
            return None
        new = [alarm for alarm in alarms_at(self._rows, self.facts, self.settings) if alarm.kind not in self._told]
        for alarm in new:
            self._told.add(alarm.kind)
            append_jsonl(self.folder / ALARMS_FILE, [alarm._asdict()])
            text = f"alarm at step {step}, {alarm.kind}: {alarm.message}"
            tell(self.console, text, style="yellow")
        return new[0] if new else None
