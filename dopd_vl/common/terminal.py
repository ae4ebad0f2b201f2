"""The console of every command. Text is text on it: no markup, no control characters, whoever wrote it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dopd_vl.common.visible import visible


class Terminal(Console):
    """A rich console on which only rich itself moves the cursor."""

    def __init__(self, stderr: bool = False, **options: Any):
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Lines, titles and cells, before they are laid out. A table asks for markup of its own accord."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever else there is, as it is laid out: bars, Markdown, styled text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def tell(console: Console, text: str, style: str | None = None) -> None:
    """Lines for people, on any console; a terminal wraps them, a file keeps them whole."""
    console.print(visible(text), style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def show(console: Console, renderable: RenderableType) -> None:
    """A table, or what else has a form of its own."""
    console.print(renderable)
