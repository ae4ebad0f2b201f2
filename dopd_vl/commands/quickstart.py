"""`dopd-vl quickstart`: privileged data in, a better student out, on a laptop.

It is a small study: prepare two privileged data sets, score student and teacher, train the student by each method, and
compare. Stopped at any point, the same command goes on from there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dopd_vl.common.configuration import as_yaml, read_config
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.common.files import make_folder, read_jsonl, write_atomically, write_json, writing_to
from dopd_vl.common.run_layout import ALARMS_FILE
from dopd_vl.common.terminal import Terminal, show_table, tell

if TYPE_CHECKING:
    from dopd_vl.studies.config import StudyConfig
    from dopd_vl.studies.run import Outcome

EVALUATIONS = 5
"""of each run on its way"""


@dataclass
class QuickstartConfig:
    """Prepare data, train a small student by several methods, and compare, in minutes on a CPU.

    See README.md.
    """

    output_dir: str = "runs/quickstart"
    """The folder of everything that it makes."""
    study: list[str] = field(default_factory=lambda: ["study/worlds/nano-vision", "study/quickstart"])
    """The files of the study that it is: the world and the methods."""
    train_size: int = 3200
    """The number of training examples."""
    eval_size: int = 240
    """The number of held-out examples."""
    steps: int = 100
    """The number of optimizer steps of each method."""
    seed: int = 0
    """Every random choice is drawn from this number, that of the examples among them."""
    workers: int = 2
    """So many methods are trained at a time, each on one CPU thread."""


@dataclass
class Row:
    """One line of the result."""

    name: str
    accuracy: float | None
    """held-out, without any privileged input; None: nothing was scored"""
    privileged_accuracy: float | None
    """held-out, with it"""
    entropy: float | None
    """nats per response token"""
    gap_recovered: float | None = None
    """of the distance between the untrained student and the teacher"""
    alarm: str | None = None
    """the first of the run's alarms"""


def main(argv: Sequence[str]) -> int:
    config = read_config(QuickstartConfig, argv, "dopd-vl quickstart")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.reporting.inspector import read_rollouts
    from dopd_vl.reporting.page import report_page
    from dopd_vl.reporting.runs import read_runs
    from dopd_vl.studies.run import run_study

    quiet_libraries()
    console = Terminal()
    started = time.monotonic()
    folder = Path(config.output_dir)
    _same_run(folder, config)
    study = as_study(config)
    outcome = run_study(study, console)
    if outcome.failures:
        failed = outcome.failures[0]
        raise UserError(f"{failed.title}: {failed.reason} ({failed.log})")
    runs = outcome.runs
    rows = rows_of(study, outcome)
    show_rows(console, rows, config)
    for row in rows:
        if row.alarm is not None:
            tell(console, f"{row.name}: {row.alarm}")
    write_json(folder / "summary.json", {"config": asdict(config), "rows": [asdict(row) for row in rows]})
    shown = read_runs([Path(run.stages[-1][1].output_dir) for run in runs], None)
    report = folder / "report.html"
    write_atomically(report, report_page(shown, [read_rollouts(run.folder, None) for run in shown]))
    tell(console, f"took {time.monotonic() - started:.0f} s")
    tell(console, f"run folder: {folder}\nreport: {report}")
    return 0


def as_study(config: QuickstartConfig) -> "StudyConfig":
    """The study, at the sizes that were asked for.

    Raises:
        ConfigurationError: the study makes no data sets named `train` and `held-out`, or scores one variant alone.
    """
    from dopd_vl.studies.config import StudyConfig

    options = [word for file in config.study for word in ("--config", file)]
    study = read_config(StudyConfig, options, "dopd-vl quickstart")
    data = {}
    for name, size in (("train", config.train_size), ("held-out", config.eval_size)):
        source = study.data.get(name)
        if not isinstance(source, Mapping) or len(study.score_variants) < 2:
            raise ConfigurationError("study: must make data sets `train` and `held-out`, and score two variants")
        data[name] = {**source, "options": {**source["options"], "size": size, "seed": config.seed}}
    every = max(1, config.steps // EVALUATIONS)
    settings = {"training.max_steps": config.steps, "training.eval_steps": every, "training.save_steps": every}
    return replace(
        study,
        output_dir=config.output_dir,
        name="methods",
        seeds=[config.seed],
        workers=config.workers,
        settings={**study.settings, **settings},
        data=data,
        tune=[],  # each cell at its own rate, in minutes
    )


def rows_of(study: "StudyConfig", outcome: "Outcome") -> list[Row]:
    """The student before, the student after each run, and the teacher."""
    from dopd_vl.studies.run import reference_folder

    def row(name: str, scores: Mapping[str, Any], **more: Any) -> Row:
        (by_variant,) = next(iter(scores.values())).values()
        plain, privileged = (by_variant[variant] for variant in study.score_variants[:2])
        return Row(name, plain["accuracy"], privileged["accuracy"], plain["entropy"], **more)

    before, *teacher = (
        row(f"{role} {when}".strip(), outcome.scores[reference_folder(study, model)])
        for (role, when), model in zip(
            (("student", "before"), ("teacher", "")), outcome.runs[0].references, strict=False
        )
    )
    rows = [before]
    for run in outcome.runs:
        alarms = read_jsonl(Path(run.stages[-1][1].output_dir) / ALARMS_FILE)
        alarm = f"alarm at step {alarms[0]['step']}, {alarms[0]['kind']}: {alarms[0]['message']}" if alarms else None
        after = row(run.cell.name, outcome.scores[run.folder], alarm=alarm)
        start, end, most = before.accuracy, after.accuracy, teacher[0].accuracy if teacher else None
        if start is not None and end is not None and most is not None and most > start:
            after = replace(after, gap_recovered=(end - start) / (most - start))
        rows.append(after)
    return [*rows, *teacher]


def show_rows(console: Console, rows: Sequence[Row], config: QuickstartConfig) -> None:
    """The result as a table."""
    head = ("", "accuracy", "privileged", "entropy", "gap recovered")
    cells = [
        (
            row.name,
            *("not scored" if share is None else f"{share:.1%}" for share in (row.accuracy, row.privileged_accuracy)),
            "" if row.entropy is None else f"{row.entropy:.2f}",
            "" if row.gap_recovered is None else f"{row.gap_recovered:+.0%}",
        )
        for row in rows
    ]
    title = f"{config.eval_size} held-out examples, {config.steps} steps a method, seed {config.seed}; entropy in nats"
    show_table(console, head, cells, title)


def _same_run(folder: Path, config: QuickstartConfig) -> None:
    """A folder belongs to one set of settings."""
    file = folder / "quickstart.yaml"
    text = as_yaml(replace(config, workers=QuickstartConfig.workers))
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UserError(f"output_dir: {folder} holds a quickstart with other settings; give another folder")
    make_folder(folder)
    with writing_to(folder):
        write_atomically(file, text)
