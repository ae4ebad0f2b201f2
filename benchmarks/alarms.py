"""How early the alarms of a run tell a collapse, and how often they cry wolf, over finished run folders.

    python benchmarks/alarms.py 'runs/studies/*/*/runs/*/seed-*'
    python benchmarks/alarms.py 'runs/studies/*/*/runs/*/seed-*' --without-verifier    # hides the rollout accuracy
    python benchmarks/alarms.py ... --output alarms.json

Exit code 1 where a collapsed run was not told of within 20 steps, or a healthy run had an alarm.

    collapsed   the last eval_accuracy is under 0.8 of the first and, by a one-sided binomial test, below it (p < 0.01)
    decayed     else, the last is under 0.75 of the best (p < 0.025): it lost what it had gained
    one-task    as one of these, but without the task that lost most nothing was lost: a greedy guess that flips, from
                yes to no, changes the accuracy of a whole task at once and is no decay
    diverged    a loss or gradient norm was NaN or infinite
    healthy     the last is at least 0.9 of the best; every alarm there is a false one
    unclear     everything else: too few held-out examples to say whether something was lost

The verdict is by held-out accuracy, which no alarm reads. The onset is found with hindsight, in the rollout accuracy:
the step after which its moving mean over 5 steps has for good lost a quarter of what it will lose from its best to its
last value. `peak` is the step of that best value: the earliest that anyone could call the beginning.
"""

import argparse
import glob
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.common.files import read_rows, write_json
from dopd_vl.common.run_layout import CONFIG_FILE, METRICS_FILE
from dopd_vl.health.alarms import Alarm, non_finite, replay
from dopd_vl.health.rows import Row, RunFacts, mean, rows_of_training, values
from dopd_vl.objectives.build import build_objective
from dopd_vl.train_config import HealthSettings, ObjectiveSettings, TrainConfig

WITHIN = 20
"""steps after the onset"""
Verdict = Literal["collapsed", "decayed", "one-task", "diverged", "unclear", "healthy"]
SMOOTHING = 5
"""rows"""


@dataclass(frozen=True)
class JudgedRun:
    """A finished run, what became of it, and what was said of it."""

    folder: Path
    verdict: Verdict
    evaluations: tuple[float, ...]
    """eval_accuracy, first to last"""
    onset: int | None
    """step; None of a healthy run, or one without a verifier"""
    peak: int | None
    alarms: tuple[Alarm, ...]

    @property
    def first(self) -> int | None:
        """Step of the first alarm."""
        return min((alarm.step for alarm in self.alarms), default=None)

    @property
    def delay(self) -> int | None:
        """Steps from the onset to the first alarm; negative: the alarm came first."""
        return None if self.first is None or self.onset is None else self.first - self.onset


@dataclass(frozen=True)
class AlarmScores:
    """Of all runs."""

    runs: tuple[JudgedRun, ...]
    unreadable: tuple[str, ...] = ()
    """one line for each folder of another version, whose objective cannot be built now"""

    def of(self, *verdicts: Verdict) -> list[JudgedRun]:
        return [run for run in self.runs if run.verdict in verdicts]

    def caught(self, *verdicts: Verdict) -> int:
        return sum(run.first is not None for run in self.of(*verdicts))

    def caught_within(self, steps: int, *verdicts: Verdict) -> int:
        """Runs with an alarm at most so many steps after the onset."""
        return sum(run.delay is not None and run.delay <= steps for run in self.of(*verdicts))


def evaluate_alarms(
    folders: Iterable[Path], settings: HealthSettings | None = None, without_verifier: bool = False
) -> AlarmScores:
    """Judge finished runs and replay the alarms on what they logged.

    Args:
        folders: run folders; one that was not evaluated at its beginning and end is left out.
        settings: thresholds; the defaults by default, whatever the run had.
        without_verifier: the alarms do not see the rollout accuracy.

    Raises:
        UserError: a folder is no run folder.
    """
    runs, unreadable = [], []
    for folder in folders:
        try:
            run = judge_run(folder, settings or HealthSettings(), without_verifier)
        except ConfigurationError as error:
            unreadable.append(f"{folder}: {error}")
            continue
        if run is not None:
            runs.append(run)
    return AlarmScores(tuple(runs), tuple(unreadable))


def judge_run(folder: Path, settings: HealthSettings, without_verifier: bool = False) -> JudgedRun | None:
    """One run; None where it was not evaluated at its last step, as of a run that is still going on."""
    rows = read_rows(folder / METRICS_FILE)
    config = _read_config(folder)
    evaluated = [row for row in rows if values([row], "eval_accuracy")]
    logged = rows_of_training(rows)
    if len(evaluated) < 2 or not logged or evaluated[-1]["step"] < logged[-1]["step"]:
        return None
    facts = RunFacts.of(config, build_objective(config.objective.name, config.objective.settings))
    evaluations = values(evaluated, "eval_accuracy")
    verdict: Verdict = verdict_of(evaluated, config.data.eval_size)
    if any(non_finite(logged[:end], facts, settings) for end in range(1, len(logged) + 1)):
        verdict = "diverged"
    onset, peak = (None, None) if verdict == "healthy" else onset_of(logged)
    shown: Sequence[Row] = logged
    if without_verifier:
        shown = [{name: value for name, value in row.items() if name != "rollout_accuracy"} for row in logged]
    return JudgedRun(folder, verdict, tuple(evaluations), onset, peak, tuple(replay(shown, facts, settings)))


def verdict_of(evaluated: Sequence[Row], size: int | None) -> Verdict:
    """What became of a run, by the rows of its evaluations, first to last, of `size` examples each (None: 100)."""
    first, best, last = evaluated[0], max(evaluated, key=_total), evaluated[-1]
    rules: tuple[tuple[Verdict, Row, float, float], ...] = (
        ("collapsed", first, 0.8, 2.33),
        ("decayed", best, 0.75, 1.96),
    )
    for verdict, before, share, z in rules:
        if _total(last) < share * _total(before) and _binomial_z(_total(before), _total(last), size or 100) > z:
            return verdict if _more_than_one_task_fell(before, last) else "one-task"
    return "healthy" if _total(last) >= 0.9 * _total(best) else "unclear"


def _total(row: Row) -> float:
    return float(row["eval_accuracy"])


def _more_than_one_task_fell(before: Row, after: Row) -> bool:
    tasks = [name for name in before if name.startswith("eval_accuracy/") and name in after]
    losses = sorted(before[name] - after[name] for name in tasks)
    return len(losses) < 2 or sum(losses[:-1]) > 0


def onset_of(rows: Sequence[Row]) -> tuple[int | None, int | None]:
    """The step that a fall of the rollout accuracy began after, and the step of its best value."""
    judged = [row for row in rows if values([row], "rollout_accuracy")]
    accuracy = values(judged, "rollout_accuracy")
    means = [mean(accuracy[end - SMOOTHING : end]) for end in range(SMOOTHING, len(accuracy) + 1)]
    if not means or means[-1] >= max(means):
        return None, None
    best = max(range(len(means)), key=means.__getitem__)
    line = means[best] - 0.25 * (means[best] - means[-1])
    last_above = max(index for index, value in enumerate(means) if value >= line)
    # Mean number i is of the rows i to i + SMOOTHING - 1; its step is that of the middle one.
    onset, peak = (int(judged[index + SMOOTHING // 2]["step"]) for index in (last_above, best))
    return onset, peak


def _binomial_z(higher: float, lower: float, size: int) -> float:
    p = (higher + lower) / 2
    return (higher - lower) / math.sqrt(2 * p * (1 - p) / size) if 0 < p < 1 else 0.0


def _read_config(folder: Path) -> TrainConfig:
    """What `RunFacts` needs of a run's config.yaml."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: no run folder, it has no {CONFIG_FILE}")
    saved: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    config = TrainConfig(objective=ObjectiveSettings(**saved["objective"]))
    config.data.eval_size = saved["data"]["eval_size"]
    known = {name: saved["training"][name] for name in vars(config.training) if name in saved["training"]}
    config.training = replace(config.training, **known)
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="run folders, or glob patterns of them")
    parser.add_argument("--without-verifier", action="store_true", help="hide the rollout accuracy from the alarms")
    parser.add_argument("--output", type=Path, help="every run with its verdict and alarms, as JSON")
    options = parser.parse_args()
    found = {Path(name) for pattern in options.folders for name in glob.glob(pattern, recursive=True)}
    folders = sorted(folder for folder in found if (folder / CONFIG_FILE).is_file())
    scores = evaluate_alarms(folders, without_verifier=options.without_verifier)
    if not scores.runs:
        print("no finished run with evaluations among these folders", file=sys.stderr)
        return 2
    print_scores(scores, len(folders))
    if options.output:
        write_json(options.output, [as_row(run) for run in scores.runs])
    late = len(scores.of("collapsed")) - scores.caught_within(WITHIN, "collapsed")
    return int(late > 0 or scores.caught("healthy") > 0)


def as_row(run: JudgedRun) -> dict[str, Any]:
    alarms = [alarm._asdict() for alarm in run.alarms]
    return {**vars(run), "folder": str(run.folder), "alarms": alarms, "first": run.first, "delay": run.delay}


def print_scores(scores: AlarmScores, folders: int) -> None:
    print(f"{len(scores.runs)} finished runs of {folders} folders, {len(scores.unreadable)} of another version")
    for verdict in ("collapsed", "decayed", "one-task", "diverged", "unclear"):
        runs = scores.of(verdict)
        if not runs:
            continue
        delays = sorted(run.delay for run in runs if run.delay is not None)
        from_peak = sorted(run.first - run.peak for run in runs if run.first is not None and run.peak is not None)
        print(
            f"{verdict}: {scores.caught(verdict)} of {len(runs)} told, "
            f"{scores.caught_within(WITHIN, verdict)} within {WITHIN} steps of the onset"
            + (f"; delay median {statistics.median(delays):g}, longest {delays[-1]}" if delays else "")
            + (f"; from the peak median {statistics.median(from_peak):g}" if from_peak else "")
        )
    print(f"healthy: {scores.caught('healthy')} of {len(scores.of('healthy'))} with a false alarm")
    for run in scores.runs:
        if run.verdict == "healthy" and not run.alarms:
            continue
        evaluations = " ".join(f"{value:.2f}" for value in run.evaluations)
        print(f"\n{run.verdict}  {run.folder}\n  held-out {evaluations}; peak {run.peak}, onset {run.onset}")
        for alarm in run.alarms:
            print(f"  step {alarm.step} {alarm.kind}: {alarm.message}")


if __name__ == "__main__":
    sys.exit(main())
