"""Progress of an evaluation: a live bar on a terminal, a line every few seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dopd_vl.evaluation.accuracy import Batch

SECONDS_BETWEEN_LINES = 10.0


class EvaluationProgress:
    """Counts responses and says their rate, the accuracy so far and the time left."""

    def __init__(self, console: Console, title: str, total: int):
        self._console, self._title, self._total = console, title, total
        self._done = self._before = self._right = self._judged = 0
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, facts="")

    def __enter__(self) -> "EvaluationProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def restore(self, batch: Batch, responses: int) -> None:
        """Count a batch of an earlier run: done, but not at this run's rate."""
        self._before += responses
        self._count(batch, responses)

    def advance(self, batch: Batch, responses: int) -> None:
        """Count a batch that was just done, of so many responses, refused ones among them."""
        self._count(batch, responses)
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        facts = f"{rate:.1f}/s"
        if self._judged:
            facts += f", {self._right / self._judged:.1%} right"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, facts=facts)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self._total - self._done) / rate
            line = f"{self._title}: {self._done}/{self._total}, {facts}, {left:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _count(self, batch: Batch, responses: int) -> None:
        self._done += responses
        verdicts = [p.correct for p in batch.predictions if p.correct is not None]
        self._judged += len(verdicts)
        self._right += sum(verdicts)
