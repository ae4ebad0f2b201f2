"""The progress of a training run."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBar(TrainerCallback):
    """One line a run: step, rate, loss, accuracy, time left. Plain lines where there is no terminal."""

    def __init__(self, title: str, console: Console | None = None):
        self.title = title
        self.console = console or Console()
        self._progress: Progress | None = None
        self._facts: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(self.title, total=state.max_steps, completed=state.global_step, facts="")
        self._progress.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._progress is None or not logs:
            return
        shown = {
            "loss": "loss {:.3f}",
            "rollout_accuracy": "rollouts {:.0%}",
            "eval_accuracy": "held-out {:.1%}",
            "step_time": "{:.2f} s/step",
        }
        for key, form in shown.items():
            if logs.get(key) is not None:
                self._facts[key] = form.format(float(logs[key]))
        facts = "  ".join(self._facts[key] for key in shown if key in self._facts)
        self._progress.update(self._task, completed=state.global_step, facts=facts)
        if not self.console.is_terminal and "eval_accuracy" in logs:
            self.console.print(f"{self.title}  step {state.global_step}/{state.max_steps}  {facts}", highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
