"""Quantities over steps as figures for a paper: SVG with real text, and PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def draw_figure(lines: Sequence[Line], title: str, stem: Path) -> list[Path]:
    """Write `STEM.svg` and `STEM.png`, 4.2 x 2.8 inches; the folder must exist. Equal lines make equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png")]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": stem.name}):
        figure, axis = pyplot.subplots(figsize=(4.2, 2.8), layout="constrained")
        for line in lines:
            colour = PALETTE[line.number % len(PALETTE)]
            style = STYLES[line.number // len(PALETTE) % len(STYLES)]
            axis.plot(line.steps, line.middle, color=colour, linestyle=style, linewidth=1.4, label=line.label)
            axis.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel("step")
        axis.set_ylabel(title, parse_math=False)
        axis.spines[["top", "right"]].set_visible(False)
        for text in axis.legend(frameon=False, fontsize=7).get_texts():
            text.set_parse_math(False)  # a run's name may hold a dollar sign
        svg, png = files
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=160)
        pyplot.close(figure)
    return files
