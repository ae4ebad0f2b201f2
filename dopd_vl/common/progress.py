"""How far a piece of work has come: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from dopd_vl.common.terminal import tell
from dopd_vl.common.visible import visible

SECONDS_BETWEEN_LINES = 10.0
"""at first; a long piece of work says something less often"""
MOST_SECONDS_BETWEEN_LINES = 300.0
LINES_SO_FAR = 30
"""that a piece of work has printed before they come less often"""


def live_bar(console: Console) -> Bar:
    """The bar of every command. Use it as a context, or start and stop it; off a terminal it shows nothing.

    Each of its tasks has a field `facts`: what else there is to say, parted by commas, what matters most last. Where a
    terminal is narrow, what matters least is left out.
    """
    return _FittingBar(console=console, disable=not console.is_terminal)


class _Facts(ProgressColumn):
    def __init__(self, most: int):
        super().__init__()
        self._most = most

    def render(self, task: Task) -> Text:
        return Text(", ".join(task.fields["facts"].split(", ")[-self._most :]), no_wrap=True)


class _FittingBar(Bar):
    """Draws the longest line that fits."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        tasks = list(tasks)
        if not tasks:
            return Table.grid()
        title, count = TextColumn("{task.description}", markup=False), MofNCompleteColumn()
        left = (TextColumn("left"), TimeRemainingColumn())
        lines: list[tuple[ProgressColumn, ...]] = [
            (title, BarColumn(bar_width=24), count, _Facts(99), TimeElapsedColumn(), *left),
            (title, BarColumn(bar_width=10), count, _Facts(99), *left),
            *((title, count, _Facts(most), *left) for most in (99, 3, 2, 1)),
            (title, count, _Facts(1)),
            (title, count),
        ]
        for columns in lines:
            self.columns = columns
            table = super().make_tasks_table(tasks)
            unbounded = self.console.options.update(width=10_000)
            if Measurement.get(self.console, unbounded, table).maximum <= self.console.width:
                break
        return table


class Progress:
    """Counts `total` units of one piece of work, and says their rate, the time left and whatever `facts` there are.

    Args:
        title: what is done.
        unit: what is counted, in the plural: "records".
        done: how many an earlier run did; they do not count in the rate.
    """

    def __init__(self, console: Console, title: str, total: int, unit: str, done: int = 0):
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._before = self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar = live_bar(console)
        self._task = self._bar.add_task(visible(title), total=total, completed=done, facts="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        if not self._console.is_terminal:
            begun = f", {self._done} done" if self._done else ""
            tell(self._console, f"{self._title}: begins, {self._total} {self._unit}{begun}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, count: int = 1, facts: str = "") -> None:
        """Count what was just done."""
        self.reach(self._done + count, facts)

    def reach(self, done: int, facts: str = "", say: bool = False) -> None:
        """So many are done by now. `say`: off a terminal, print a line whether or not it is time for one."""
        self._done = done
        now = time.monotonic()
        rate = (done - self._before) / max(now - self._start, 1e-9)
        pace = f"{rate:.3g} {self._unit}/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s/{self._unit[:-1]}"
        told = ", ".join(text for text in (pace, facts) if text)
        self._bar.update(self._task, completed=done, facts=visible(told))
        pause = min(max(SECONDS_BETWEEN_LINES, (now - self._start) / LINES_SO_FAR), MOST_SECONDS_BETWEEN_LINES)
        if not self._console.is_terminal and (say or now - self._last_line >= pause):
            self._last_line = now
            left = f", {(self._total - done) / rate:.0f} s left" if rate else ""
            tell(self._console, f"{self._title}: {done}/{self._total} {self._unit}, {told}{left}")
