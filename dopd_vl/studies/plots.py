"""A study's figures: each quantity over steps, mean and spread over seeds, a line a cell."""

from pathlib import Path
from typing import Any

from dopd_vl.studies.config import StudyConfig, study_folder
from dopd_vl.studies.results import SHARES, StudyResult

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's, told apart by readers with any colour vision; line styles repeat it for more cells."""
STYLES = ("-", "--", ":", "-.")
TITLES = {"eval_accuracy": "held-out accuracy", "eval_entropy": "entropy (nats)", "gap/mean": "mean gap A (nats)"}


def draw(config: StudyConfig, result: StudyResult) -> list[Path]:
    """`figures/QUANTITY.svg` and `.png` for accuracy, entropy, gap and every regime's share that the runs logged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.fonttype"] = "none"
    folder = study_folder(config) / "figures"
    names = sorted({row["metric"] for row in result.curves if _drawn(row["metric"])})
    files = []
    for name in names:
        folder.mkdir(exist_ok=True)
        figure, axis = pyplot.subplots(figsize=(4.2, 2.8), layout="constrained")
        for number, cell in enumerate(dict.fromkeys(row["cell"] for row in result.curves)):
            rows = _over_stages([row for row in result.curves if row["cell"] == cell and row["metric"] == name])
            if not rows:
                continue
            steps, means = [row["step"] for row in rows], [row["mean"] for row in rows]
            spreads = [row["spread"] or 0.0 for row in rows]
            colour = PALETTE[number % len(PALETTE)]
            style = STYLES[number // len(PALETTE) % len(STYLES)]
            axis.plot(steps, means, color=colour, linestyle=style, linewidth=1.4, label=cell)
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel("step")
        axis.set_ylabel(TITLES.get(name, name))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
        for suffix in ("svg", "png"):
            file = folder / f"{name.replace('/', '-')}.{suffix}"
            figure.savefig(file, dpi=160)
            files.append(file)
        pyplot.close(figure)
    return files


def _drawn(metric: str) -> bool:
    is_accuracy = metric.startswith("eval_") and metric.endswith("_accuracy")
    return metric in TITLES or is_accuracy or metric.startswith(SHARES)


def _over_stages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps counted on from stage to stage."""
    moved, before = [], 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        some = [row for row in rows if row["stage"] == stage]
        moved += [{**row, "step": row["step"] + before} for row in some]
        before += max(row["step"] for row in some)
    return moved
