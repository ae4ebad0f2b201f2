"""The progress of a training run."""

from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dopd_vl.common.progress import Progress
from dopd_vl.common.terminal import Terminal

_SHOWN = {"loss": "loss {:.3f}", "rollout_accuracy": "rollouts {:.0%}", "eval_accuracy": "held-out {:.1%}"}


class ProgressBar(TrainerCallback):
    """One line a run: step, rate, loss, accuracy, time left. Plain lines where there is no terminal."""

    def __init__(self, title: str, console: Console | None = None):
        self.title = title
        self.console = console or Terminal()
        self._progress: Progress | None = None
        self._facts: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._progress = Progress(self.console, self.title, state.max_steps, "steps", done=state.global_step)
            self._progress.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._reach(state)  # whatever `logging_steps` says

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        self._facts |= {key: form.format(float(logs[key])) for key, form in _SHOWN.items() if logs.get(key) is not None}
        self._reach(state, say=any(name.startswith("eval_") for name in logs))

    def _reach(self, state: TrainerState, say: bool = False) -> None:
        if self._progress is not None:
            facts = ", ".join(self._facts[key] for key in _SHOWN if key in self._facts)
            self._progress.reach(state.global_step, facts, say)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
