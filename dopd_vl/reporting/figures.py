"""Quantities over steps as figures for a paper: SVG with real text, and PNG."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, told apart by readers with any colour vision; line styles repeat it for more lines."""
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """A quantity over steps, with a band around it; the four lists are of one length."""

    label: str
    number: int
    """which colour and style it has: the same in all figures"""
    steps: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


WIDTH, HEIGHT, LEGEND_ROW = 4.2, 2.6, 0.15
"""Inches: of a figure, and of each row of the legend below it."""


def draw_figure(lines: Sequence[Line], title: str, stem: Path, share: bool = False) -> list[Path]:
    """Write `STEM.svg` and `STEM.png`, 4.2 inches wide; the folder must exist. Equal lines make equal bytes.

    Args:
        share: the quantity is a share, 0 to 1, and is shown in per cent.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png")]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": stem.name}):
        figure, axis = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        for line in lines:
            colour = PALETTE[line.number % len(PALETTE)]
            style = STYLES[line.number // len(PALETTE) % len(STYLES)]
            name = _wrapped(line.label, 60)
            axis.plot(line.steps, line.middle, color=colour, linestyle=style, linewidth=1.4, label=name)
            axis.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel("step")
        axis.set_ylabel(_wrapped(title, 30), parse_math=False)
        if share:
            axis.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axis.grid(color="#e3e3e3", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        _put_legend_below(figure)
        svg, png = files
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=160)
        pyplot.close(figure)
    return files


def _put_legend_below(figure: Any) -> None:
    """In as many columns as its names leave room for, and the figure is higher by its rows: it hides no line."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for columns in range(min(len(labels), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a run's name may hold a dollar sign
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    rows = math.ceil(len(labels) / columns) + sum(label.count("\n") for label in labels)
    figure.set_figheight(HEIGHT + LEGEND_ROW * rows)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text
