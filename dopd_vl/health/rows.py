"""The rows of metrics.jsonl as the watch over a run reads them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

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


class History(Sequence[Row]):
    """The rows of training so far, without those of evaluations and of steps that no example was usable for.

    A slice of it is a list of rows. What a rule asks of all rows goes on from where it was asked last, so that to judge
    a run of N rows at each of them is N steps of work and not N squared.
    """

    def __init__(self, rows: Iterable[Row] = ()):
        self._rows: list[Row] = []
        self._columns: dict[str, Column] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> bool:
        """Whether it is a row of training."""
        if "loss" not in row or row.get("usable_rollouts") == 0:
            return False
        self._rows.append(row)
        return True

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        return self._rows[place]

    def column(self, name: str) -> "Column":
        """The finite values of a column up to now."""
        column = self._columns.setdefault(name, Column())
        column.read(self._rows, name)
        return column


class Column(Sequence[float]):
    """The finite values of one column, in order, with what is known of their moving means."""

    def __init__(self, numbers: Iterable[float] = ()) -> None:
        self._values = list(numbers)
        self.rows: list[Row] = []
        """those that have a value"""
        self._read = 0
        self._best: dict[tuple[int, bool], tuple[int, float, int]] = {}

    def read(self, rows: Sequence[Row], name: str) -> None:
        """Go on to the last of the rows."""
        for row in rows[self._read :]:
            if is_number(row.get(name)):
                self._values.append(float(row[name]))
                self.rows.append(row)
        self._read = len(rows)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, place: int) -> float: ...

    @overload
    def __getitem__(self, place: slice) -> list[float]: ...

    def __getitem__(self, place: int | slice) -> float | list[float]:
        return self._values[place]

    def extreme_before_last(self, window: int, largest: bool) -> tuple[float, int] | None:
        """The largest or smallest mean of `window` neighbours that share none with the last `window`, and the first
        place that has it; None while there is no such window."""
        end = len(self) - 2 * window + 1  # windows begin before this place
        if end <= 0:
            return None
        seen, best, place = self._best.get((window, largest), (0, math.nan, 0))
        for start in range(seen, end):
            value = mean(self._values[start : start + window])
            if start == 0 or (value > best if largest else value < best):
                best, place = value, start
        self._best[window, largest] = (end, best, place)
        return best, place


def rows_of_training(rows: Iterable[Row]) -> list[Row]:
    """Those that `History` keeps."""
    return History(rows)[:]


def values(rows: Sequence[Row], name: str) -> list[float]:
    """The finite values of a column of a few rows, in order."""
    return [float(row[name]) for row in rows if is_number(row.get(name))]


def mean(numbers: Sequence[float]) -> float:
    """Raises: ZeroDivisionError: there are none."""
    return sum(numbers) / len(numbers)


def per_cent(share: float) -> str:
    """A share as a person reads it."""
    return f"{100 * share:.0f} %"
