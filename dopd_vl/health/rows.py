"""The rows of metrics.jsonl as the watch over a run reads them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dopd_vl.common.files import is_number
from dopd_vl.objectives import Objective
from dopd_vl.train_config import TrainConfig

Row = Mapping[str, Any]
"""A row of metrics.jsonl"""


@dataclass(frozen=True)
class RunFacts:
    """What the rows do not say of the run that they are of."""

    objective: Objective
    rollouts_per_row: int
    """over all processes and the steps that a row is the mean of"""
    logging_steps: int
    """steps per row"""
    learning_rate: float
    max_completion_length: int
    """tokens"""

    @classmethod
    def of(cls, config: TrainConfig, objective: Objective, processes: int = 1) -> "RunFacts":
        loop = config.training
        rollouts = loop.per_device_train_batch_size * loop.gradient_accumulation_steps * loop.logging_steps * processes
        return cls(objective, rollouts, loop.logging_steps, loop.learning_rate, loop.max_completion_length)

    def rows(self, steps: int) -> int:
        """How many rows so many steps are, rounded up."""
        return math.ceil(steps / self.logging_steps)


def rows_of_training(rows: Sequence[Row]) -> list[Row]:
    """Without the rows of evaluations, and of steps that no example was usable for."""
    return [row for row in rows if "loss" in row and row.get("usable_rollouts") != 0]


def values(rows: Sequence[Row], name: str) -> list[float]:
    """The finite values of a column, in order."""
    return [float(row[name]) for row in rows if is_number(row.get(name))]


def mean(numbers: Sequence[float]) -> float:
    """Raises: ZeroDivisionError: there are none."""
    return sum(numbers) / len(numbers)


def moving_means(numbers: Sequence[float], window: int) -> list[float]:
    """Means of every `window` neighbours, first to last; empty where there are fewer numbers.

    >>> moving_means([1.0, 2.0, 6.0], 2)
    [1.5, 4.0]
    """
    return [mean(numbers[end - window : end]) for end in range(window, len(numbers) + 1)]


def per_cent(share: float) -> str:
    """A share as a person reads it."""
    return f"{100 * share:.0f} %"
