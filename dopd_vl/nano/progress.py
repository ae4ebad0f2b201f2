"""A progress bar on a terminal; elsewhere a plain line now and then."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_EVERY = 20.0  # seconds


class Progress:
    """Counts `total` units of `name`, with a free text beside the count."""

    def __init__(self, console: Console, name: str, total: int, unit: str):
        self.console, self.name, self.total, self.unit = console, name, total, unit
        self.done, self.start = 0, time.monotonic()
        self.printed = self.start
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[told]}"),
            )
            self.bar = Bar(*columns, console=self.console)
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total, told="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, told: str = "") -> None:
        """One more unit is done."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, told=told)
            return
        now = time.monotonic()
        if now - self.printed < PLAIN_EVERY and self.done < self.total:
            return
        self.printed = now
        left = (now - self.start) / self.done * (self.total - self.done)
        text = f"{self.name}: {self.done}/{self.total} {self.unit}, {left:.0f} s left"
        self.console.print(f"{text}, {told}" if told else text, highlight=False, soft_wrap=True)
