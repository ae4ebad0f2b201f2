"""`dopd-vl quickstart`: privileged data in, a better student out, on a laptop.

The same parts as on a GPU box, one after another: prepare two privileged data sets, score student and teacher, train
the student by each method, and compare. Stopped at any point, the same command goes on from there.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from dopd_vl.common.configuration import as_yaml, read_config
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import make_folder, write_atomically, write_json, writing_to
from dopd_vl.common.terminal import Terminal, show, tell

TITLES = {"opd": "vanilla OPD", "dopd": "DOPD", "dopd-anchored": "DOPD-anchored"}


@dataclass
class QuickstartConfig:
    """Prepare data, train a small student by several methods, and compare, in minutes on a CPU."""

    output_dir: str = "runs/quickstart"
    train_config: str = "configs/vlm/nano.yaml"
    """the training run that every method shares"""
    student: str | None = None
    """another student than that run's"""
    world: Literal["vision", "text"] = "vision"
    tasks: list[str] | None = None
    """of that world; all by default"""
    methods: list[str] = field(default_factory=lambda: ["opd", "dopd", "dopd-anchored"])
    """objectives, by name"""
    train_size: int = 1500
    """training examples"""
    eval_size: int = 240
    """held-out examples"""
    steps: int = 100
    """optimizer steps of each method"""
    seed: int = 0


@dataclass
class Row:
    """One line of the result."""

    name: str
    accuracy: float
    """held-out, without any privileged input"""
    privileged_accuracy: float | None
    """held-out, with it"""
    entropy: float
    """nats per response token"""
    gap_recovered: float | None
    """of the distance between the untrained student and the teacher"""
    seconds: float | None


def main(argv: Sequence[str]) -> int:
    config = read_config(QuickstartConfig, argv, "dopd-vl quickstart")
    from dopd_vl.common.quiet import quiet_libraries

    quiet_libraries()
    console = Terminal()
    started = time.monotonic()
    folder = Path(config.output_dir)
    _same_run(folder, config)
    rows = run_quickstart(config, console)
    table = as_table(rows, config)
    show(console, table)
    for row in rows:
        if row.gap_recovered is not None and row.gap_recovered < 0:
            tell(console, f"{row.name} ended below the student that it began with; docs/stability.md says more")
    write_json(folder / "summary.json", {"config": asdict(config), "rows": [asdict(row) for row in rows]})
    tell(console, f"took {time.monotonic() - started:.0f} s")
    tell(console, f"run folder: {folder}")
    return 0


def run_quickstart(config: QuickstartConfig, console: Console) -> list[Row]:
    """Do what is not done yet and give the result's rows."""
    from dopd_vl.evaluation.run import evaluate_model
    from dopd_vl.nano.source import NanoSource
    from dopd_vl.train_config import TrainConfig
    from dopd_vl.training.run import load_examples, run_training
    from privileged.prepare.prepare import PrepareConfig, SourceConfig, prepare

    folder = Path(config.output_dir)
    for split, size in (("train", config.train_size), ("heldout", config.eval_size)):
        options: dict[str, Any] = {"world": config.world, "split": split, "size": size, "seed": config.seed}
        options |= {"tasks": config.tasks} if config.tasks else {}
        source = SourceConfig(kind="nano", options=options)
        prepare(PrepareConfig(source=source, output=str(folder / "data" / split)), {"nano": NanoSource})

    def train_config(method: str) -> TrainConfig:
        overrides = {
            "output_dir": folder / method,
            "seed": config.seed,
            "resume": "true",
            "data.train": folder / "data" / "train",
            "data.eval": folder / "data" / "heldout",
            "objective.name": method,
            "training.max_steps": config.steps,
            "training.eval_steps": max(1, config.steps // 5),
            "training.save_steps": max(1, config.steps // 5),
        }
        overrides |= {"model.student": config.student} if config.student else {}
        options = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        return read_config(TrainConfig, ["--config", config.train_config, *options], "dopd-vl train")

    base = train_config(config.methods[0])
    loop = base.training
    if base.model.teacher is None:
        raise UserError("train_config: the quickstart compares students with a teacher; set model.teacher")
    teacher_file = folder / "teacher.json"
    if not teacher_file.exists():
        held_out = load_examples(str(folder / "data" / "heldout"))
        scores = {}
        for variant in loop.eval_variants:
            title = f"teacher, {variant}"
            scores[variant], _, _ = evaluate_model(
                base.model.teacher,
                held_out,
                variant,
                loop.max_completion_length,
                loop.per_device_eval_batch_size,
                title=title,
                console=console,
            )
        write_json(teacher_file, {variant: asdict(s) for variant, s in scores.items()})
    teacher = json.loads(teacher_file.read_text(encoding="utf-8"))

    privileged = loop.eval_variants[1] if len(loop.eval_variants) > 1 else None
    rows: list[Row] = []
    for method in config.methods:
        began, title = time.monotonic(), TITLES.get(method, method)
        result = run_training(train_config(method), title=title, console=console)
        scored = [row for row in result.metrics if "eval_accuracy" in row]
        before, after = scored[0], scored[-1]
        if not rows:
            rows.append(_row("student before", before, privileged))
        gap = teacher["none"]["accuracy"] - before["eval_accuracy"]
        recovered = (after["eval_accuracy"] - before["eval_accuracy"]) / gap if gap > 0 else None
        rows.append(_row(title, after, privileged, recovered, time.monotonic() - began))
    of_teacher = {"eval_accuracy": teacher["none"]["accuracy"], "eval_entropy": teacher["none"]["entropy"]}
    if privileged:
        of_teacher[f"eval_{privileged}_accuracy"] = teacher[privileged]["accuracy"]
    return [*rows, _row("teacher", of_teacher, privileged)]


def _row(
    name: str,
    scored: Mapping[str, float],
    privileged: str | None,
    gap_recovered: float | None = None,
    seconds: float | None = None,
) -> Row:
    """`scored`: as a row of metrics.jsonl."""
    with_input = scored[f"eval_{privileged}_accuracy"] if privileged else None
    return Row(name, scored["eval_accuracy"], with_input, scored["eval_entropy"], gap_recovered, seconds)


def as_table(rows: Sequence[Row], config: QuickstartConfig) -> Table:
    """The result as a table for the terminal."""
    what = "images" if config.world == "vision" else "problems"
    table = Table(title=f"{config.eval_size} held-out {what}, {config.steps} steps a method, seed {config.seed}")
    table.add_column("")
    for heading in ("accuracy", "with privileged input", "entropy (nats)", "gap recovered", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.accuracy:.1%}",
            "" if row.privileged_accuracy is None else f"{row.privileged_accuracy:.1%}",
            f"{row.entropy:.2f}",
            "" if row.gap_recovered is None else f"{row.gap_recovered:+.0%}",
            "" if row.seconds is None else f"{row.seconds:.0f}",
        )
    return table


def _same_run(folder: Path, config: QuickstartConfig) -> None:
    """A folder belongs to one set of settings."""
    file = folder / "quickstart.yaml"
    text = as_yaml(config)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UserError(f"output_dir: {folder} holds a quickstart with other settings; give another folder")
    make_folder(folder)
    with writing_to(folder):
        write_atomically(file, text)
