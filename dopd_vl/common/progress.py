"""How far a piece of work has come: a live bar on a terminal, a plain line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from dopd_vl.common.terminal import tell
from dopd_vl.common.visible import visible

SECONDS_BETWEEN_LINES = 10.0


def live_bar(console: Console) -> Bar:
    """The bar of every command; each of its tasks has a field `facts`, what else there is to say. Off a terminal, none.

    Use it as a context, or start and stop it.
    """
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def restore(self, count: int) -> None:
        """Count what an earlier run did."""
        self._before += count
        self._done += count

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
        if not self._console.is_terminal and (say or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            left = f", {(self._total - done) / rate:.0f} s left" if rate else ""
            line = f"{self._title}: {done}/{self._total} {self._unit}, {told}{left}"
            tell(self._console, line)
