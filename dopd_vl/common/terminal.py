"""The console of every command. Text is text on it: no markup, no control characters, whoever wrote it."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
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


def show_table(
    console: Console,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    sums: Collection[Sequence[str]] = (),
    prose: Collection[str] = (),
) -> None:
    """A table of which no cell is cut. Where it is wider than the terminal, each row is a few lines of its own.

    Args:
        head: names of the columns; the first of them names the rows.
        sums: rows below a rule.
        prose: columns that are wrapped between words; the others are on one line.
    """
    seen = [[visible(cell) for cell in row] for row in (head, *rows, *sums)]
    first_sum = len(seen) - len(sums)
    table = Table()
    for number, name in enumerate(head):
        wraps = name in prose
        width = None if wraps else max(cell_len(row[number]) for row in seen)
        justify: JustifyMethod = "left" if wraps or number == 0 else "right"
        table.add_column(Text(seen[0][number]), justify=justify, no_wrap=not wraps, min_width=width)
    for number, row in enumerate(seen[1:], start=1):
        if number == first_sum:
            table.add_section()
        table.add_row(*map(Text, row))
    if title:
        tell(console, title)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table)
    if not console.is_terminal:
        before, console.width = console.width, max(console.width, needed.maximum)
        console.print(table)
        console.width = before
    elif needed.minimum <= console.width:
        console.print(table)
    else:
        for first, *others in seen[1:]:
            tell(console, first or seen[0][0])
            for name, cell in zip(seen[0][1:], others, strict=True):
                if cell:
                    console.print(Padding(Text(f"{name}: {cell}"), (0, 0, 0, 2), expand=False))
