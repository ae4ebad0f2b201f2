"""The outcomes of a source's records, annotated where the configuration says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .annotators.ahead import AnnotationAhead
from .annotators.estimate import estimate
from .config import PrepareConfig
from .outcomes import Outcome, RecordProcessor, SourceFactory, outcomes
from .sources import Source

if TYPE_CHECKING:
    from rich.console import Console

OutcomeStream = tuple[Iterator[Outcome], Callable[[], str] | None]
"""Outcomes in the order of the records, and what annotation has cost so far, for people."""


@contextmanager
def outcome_stream(
    config: PrepareConfig,
    source: Source,
    factory: SourceFactory,
    indices: Sequence[int],
    output: Path,
    work: Path,
    console: Console,
) -> Iterator[OutcomeStream]:
    """The outcomes of some records; leaving ends the workers and the annotation.

    Args:
        output: The folder that is made; its name is the default for the cache's.
        work: Where scratch files go.
    """
    if config.annotate is None or not indices:
        with closing(outcomes(config, source, factory, indices)) as stream:
            yield stream, None
        return
    # A source of its own: annotation runs ahead of the writer, and a source that keeps a block in memory would read
    # each block over and over for the two.
    processor = RecordProcessor(config, factory(config.source.options))
    say = partial(_say, console)
    for line in estimate(config.annotate, processor.to_annotate, indices).lines():
        say(line)
    cache, scratch = config.annotate.cache_folder(output), work / "ahead.sqlite"
    ahead = AnnotationAhead(config.annotate, config.audit, processor.to_annotate, indices, cache, scratch, say)
    try:
        with closing(outcomes(config, source, factory, indices, ahead.take)) as stream:
            yield stream, ahead.spent
    finally:
        ahead.close()
        say(f"annotation: {ahead.spent()}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
