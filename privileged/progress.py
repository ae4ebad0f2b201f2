"""Progress of a preparation: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .outcomes import Outcome

SECONDS_BETWEEN_LINES = 10.0


class PrepareProgress:
    """Counts records done and rejected; `done` of them were done by earlier runs. `spent` tells what was paid."""

    def __init__(self, console: Console, total: int, done: int, rejected: int, spent: Callable[[], str] | None = None):
        self._console, self._total, self._spent = console, total, spent
        self._first, self._done, self._rejected = done, done, rejected
        self._start = self._last_line = time.monotonic()
        self._bar = None
        if console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("preparing"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} records/s"),
                TextColumn("{task.fields[rejected]} rejected"),
                *([TextColumn("{task.fields[spent]}")] if spent is not None else []),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, rate="-", rejected=rejected, spent="")

    def __enter__(self) -> PrepareProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def counted(self, stream: Iterable[Outcome]) -> Iterator[Outcome]:
        """The same outcomes, each counted when it was worked on."""
        for outcome in stream:
            yield outcome
            self.advance(rejected=outcome.row is None)

    def advance(self, rejected: bool) -> None:
        self._done += 1
        self._rejected += rejected
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=self._done,
                rate=f"{rate:.0f}",
                rejected=self._rejected,
                spent=self._spent() if self._spent is not None else "",
            )
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self._total - self._done) / rate
            self._console.print(
                f"preparing: {self._done}/{self._total} records, {rate:.0f} records/s, {self._rejected} rejected, "
                f"{left:.0f} s left{f', {self._spent()}' if self._spent is not None else ''}",
                highlight=False,
                soft_wrap=True,
            )
