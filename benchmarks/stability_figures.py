"""The figures of docs/stability.md; `stability.py` calls `draw`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

from dopd_vl.reporting.figures import PALETTE

METHODS = ("vanilla OPD", "privileged OPD", "DOPD", "DOPD, copy fixed", "DOPD-anchored")
REGIMES = ("LH", "LL", "HT", "HS")
SMOOTHED = 10  # steps
CONDITIONS = (
    ("text/start", "student=text-10", "text, student 18 %"),
    ("text/start", "student=text-30", "text, student 37 %"),
    ("text/start", "student=text-50", "text, student 65 %"),
    ("text/start", "student=text-70", "text, student 73 %"),
    ("text/help", "student=text-even-30", "text, hints do not help the student"),
    ("text/rollouts", "num_generations=4", "text, four rollouts of a prompt"),
    ("text/teacher", "teacher=text-teacher-30", "text, the teacher needs p"),
    ("text/teacher", "teacher=text-teacher-soft", "text, the teacher is unsure"),
    ("text/shortcut", "", "text, the teacher takes a shortcut"),
    ("vision/methods", "", "vision, student 31 %"),
    ("nano-text/head-to-head", "", "text, p makes the teacher better"),
    ("nano-text/learning-rate", "learning_rate=0.0003", "the same, learning rate 3e-4"),
    ("nano-text/learning-rate", "learning_rate=0.003", "the same, learning rate 3e-3"),
    ("nano-text/slow", "learning_rate=0.0003 max_steps=300", "the same, 3e-4 and 300 steps"),
    ("nano-text/steps", "max_steps=300", "the same, 300 steps"),
    ("nano-vision/head-to-head", "", "vision, p makes the teacher better"),
    ("nano-vision/steps", "max_steps=300", "the same, 300 steps"),
    ("text/pairs", "teacher=text-guide-60 student=text-30", "teacher large, student middle"),
    ("text/pairs", "teacher=text-guide-60 student=text-small-30", "teacher large, student small"),
    ("text/pairs", "teacher=text-middle-60 student=text-30", "teacher middle, student middle"),
    ("text/pairs", "teacher=text-middle-60 student=text-small-30", "teacher middle, student small"),
)
"""(study, what follows the method in a cell's name, label), in the page's order."""


def draw(studies: dict[str, Any], means: dict[str, Any], folder: Path) -> None:
    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / f"stability-{name}.svg", metadata={"Date": None})
        pyplot.close(figure)

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stability", "font.size": 9}):
        if "text/start" in studies:
            figure, axis = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
            study = studies["text/start"]
            for number, method in enumerate(METHODS):
                points = []
                for row in study["rows"]:
                    name, _, student = row["cell"].partition(" student=")
                    if name == method:
                        points.append((study["references"][student], row["accuracy"], row["spread"]))
                x, y, e = zip(*sorted(points), strict=True)
                axis.errorbar(x, y, e, color=PALETTE[number], label=method, marker="o", capsize=3, linewidth=1.4)
            axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
            axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="accuracy before", ylabel="accuracy after 100 steps")
            axis.legend(frameon=False, fontsize=8)
            save(figure, "start")
        for world in ("text", "vision"):
            study = studies.get(f"{world}/methods") or studies.get(f"{world}/start")
            if not study:
                continue
            figure, axes = pyplot.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
            for axis, metric, title in zip(
                axes, ("rollout_accuracy", "HS"), ("rollouts right", "share of HS tokens"), strict=True
            ):
                for number, method in enumerate(METHODS):
                    cells = [c for c in study["curves"][metric] if c in (method, f"{method} student=text-30")]
                    for cell in cells:
                        steps, values = smoothed(study["curves"][metric][cell])
                        axis.plot(steps, values, color=PALETTE[number], label=method, linewidth=1.4)
                axis.set(xlabel="step", ylabel=title, ylim=(0, None))
            axes[0].legend(frameon=False, fontsize=7)
            save(figure, f"steps-{world}")
        if means:
            figure, axes = pyplot.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained", sharey=True)
            for axis, kind in zip(axes, ("plain", "privileged"), strict=True):
                for number, regime in enumerate(REGIMES):
                    values = [row["regimes"][regime][f"cosine_{kind}"] for row in means.values()]
                    axis.plot([int(s) for s in means], values, color=PALETTE[number], label=regime, marker="o")
                axis.axhline(0, color="#999999", linewidth=0.8)
                axis.set(xlabel="step of DOPD", title=f"right answer after the {kind} prompt")
            axes[0].set_ylabel("cosine with its gradient")
            axes[0].legend(frameon=False, fontsize=8)
            save(figure, "gradients")
        if any(study in studies for study, _, _ in CONDITIONS):
            save(draw_map(studies), "map")
        if "text/start" in studies:
            save(draw_over_steps(studies["text/start"]), "over-steps")


def smoothed(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """The mean over the last `SMOOTHED` steps."""
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    return steps, [statistics.mean(values[max(0, at - SMOOTHED + 1) : at + 1]) for at in range(len(values))]


def draw_map(studies: dict[str, Any]) -> Figure:
    """Accuracy after training less that of vanilla OPD, a row for each condition of the map."""
    rows = []
    for study, suffix, label in CONDITIONS:
        cells = {row["cell"]: row for row in studies.get(study, {"rows": []})["rows"]}
        found = {method: cells.get(f"{method} {suffix}".strip()) for method in METHODS}
        if found["vanilla OPD"]:
            rows.append((label, found))
    figure, axis = pyplot.subplots(figsize=(7.2, 0.8 + 0.27 * len(rows)), layout="constrained")
    for height, (_, found) in enumerate(rows):
        base = found["vanilla OPD"]["accuracy"]
        for number, method in enumerate(METHODS[1:], start=1):
            if (row := found[method]) is not None:
                axis.errorbar(
                    100 * (row["accuracy"] - base),
                    -height + 0.12 * (2.5 - number),
                    xerr=100 * row["spread"],
                    color=PALETTE[number],
                    marker="o",
                    markersize=4,
                    linewidth=1,
                    label=method if not height else None,
                )
    axis.axvline(0, color=PALETTE[0], linewidth=1, label="vanilla OPD")
    axis.set_yticks([-height for height in range(len(rows))], [label for label, _ in rows])
    axis.set(xlabel="points of accuracy above vanilla OPD; bars: standard deviation over seeds")
    axis.grid(axis="y", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=7.5)
    return figure


def draw_over_steps(study: dict[str, Any]) -> Figure:
    """For each student of the ladder: DOPD's regimes, accuracy plain and privileged, and entropy, over the steps."""
    students = sorted(study["references"].keys() & {f"text-{level}" for level in (10, 30, 50, 70)})
    figure, axes = pyplot.subplots(len(students), 3, figsize=(7.6, 1.75 * len(students)), layout="constrained")
    curves = study["curves"]
    for row, student in zip(axes, students, strict=True):
        shares = [smoothed(curves[regime][f"DOPD student={student}"]) for regime in REGIMES]
        row[0].stackplot(shares[0][0], [values for _, values in shares], colors=PALETTE[:4], labels=REGIMES, alpha=0.85)
        row[0].set(ylim=(0, 1), ylabel=f"from {100 * study['references'][student]:.0f} %")
        for number, method in enumerate(METHODS):
            if method == "DOPD, copy fixed":
                continue
            cell = f"{method} student={student}"
            for metric, style in (("eval_accuracy", "-"), ("eval_privileged_accuracy", ":")):
                steps, values = zip(*curves[metric][cell], strict=True)
                row[1].plot(steps, values, style, color=PALETTE[number], label=method if style == "-" else None)
            row[2].plot(*zip(*curves["eval_entropy"][cell], strict=True), color=PALETTE[number])
        row[1].set(ylim=(0, 1))
        row[2].set(ylim=(0.005, 4), yscale="log")
    for axis, title in zip(
        axes[0], ("DOPD: shares of the regimes", "accuracy: plain, dotted privileged", "entropy (nats)"), strict=True
    ):
        axis.set_title(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0][0].legend(loc="lower right", fontsize=6.5, ncols=2)
    handles, labels = axes[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
