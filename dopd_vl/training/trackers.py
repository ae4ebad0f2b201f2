"""What experiment trackers get beside the metrics, which transformers' own callbacks send: the rollouts as a table.

Which trackers a run reports to is `training.report_to`, from Python `DopdConfig(report_to=...)`.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from dopd_vl.common.errors import ConfigurationError, nearest

TABLE = "train/rollouts"
"""Its name in every tracker."""
COLUMNS = ("step", "id", "response", "answer", "correct", "tokens")
STEP = "train/global_step"
"""What transformers' callbacks of wandb and trackio send along, to draw by."""

Rows = Sequence[Sequence[Any]]


class RolloutTables(TrainerCallback):
    """Sends the rollouts that a run keeps (`rollouts_to_keep`) as a table at each log.

    Args:
        trainer: the `DopdTrainer` whose callback it is.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "loss" not in kwargs["logs"] or not self.trainer.kept_rollouts:
            return
        rows = [
            (state.global_step, str(r.example["id"]), r.text, r.example.get("answer"), r.correct, len(r.response))
            for r in self.trainer.kept_rollouts
        ]
        for tracker in args.report_to or ():
            if tracker in TABLES:
                TABLES[tracker](self.trainer, rows, state.global_step)


def check_trackers(report_to: Sequence[str]) -> None:
    """Whether each tracker is known to transformers, and its package is here if it is one of `TABLES`.

    Raises:
        ConfigurationError: one is not.
    """
    for tracker in report_to:
        if tracker not in INTEGRATION_TO_CALLBACK:
            raise ConfigurationError(
                f"training.report_to: unknown tracker {tracker!r}, {nearest(tracker, INTEGRATION_TO_CALLBACK)}"
            )
        if tracker in TABLES and importlib.util.find_spec(tracker) is None:
            raise ConfigurationError(f"training.report_to: {tracker} is not installed; pip install {tracker}")


def _to_tensorboard(trainer: Any, rows: Rows, step: int) -> None:
    """As Markdown, the one kind of table that it shows."""
    [of_tensorboard] = [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([_cell(value) for value in row] for row in rows)]
    of_tensorboard.tb_writer.add_text(TABLE, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)


def _cell(value: Any) -> str:
    """Text of a model or of data that Markdown and HTML take for nothing but text."""
    escaped = "".join(c if c.isalnum() or c in " \n" else f"&#{ord(c)};" for c in str(value))
    return escaped.replace("\n", "<br>")


def _to_wandb(trainer: Any, rows: Rows, step: int) -> None:
    import wandb

    wandb.log({TABLE: wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows]), STEP: step})


def _to_trackio(trainer: Any, rows: Rows, step: int) -> None:
    import trackio

    trackio.log({TABLE: trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows]), STEP: step})


def _to_swanlab(trainer: Any, rows: Rows, step: int) -> None:
    import swanlab

    table = swanlab.echarts.Table().add(list(COLUMNS), [[str(value) for value in row] for row in rows])
    swanlab.log({TABLE: table}, step=step)


TABLES: dict[str, Callable[[Any, Rows, int], None]] = {
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
    "wandb": _to_wandb,
    "swanlab": _to_swanlab,
}
"""Trackers that take a table; others get the metrics alone."""
