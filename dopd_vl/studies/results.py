"""From the runs of a study to one table, its figures and its comparison with the paper."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.common.files import iterate_rows, read_rows
from dopd_vl.common.resources import shipped
from dopd_vl.common.run_layout import METRICS_FILE, ROLLOUTS_FILE
from dopd_vl.evaluation.estimates import gap_recovered
from dopd_vl.studies.config import TUNING, Run, StudyConfig
from dopd_vl.studies.run import Outcome, reference_folder, score_sets, tuning_accuracy
from dopd_vl.studies.statistics import Comparison, Summary, compare, holm, rank_correlation, summarise

CURVES = (
    "eval_accuracy",
    "eval_entropy",
    "gap/mean",
    "kept_mass/student",
    "completions/mean_length",
    "rollout_accuracy",
)
"""Quantities of metrics.jsonl that are averaged over seeds, beside the shares of the regimes."""
SHARES = "token_share/"
SCORES = ("accuracy", "entropy", "calibration_error", "mean_tokens", "clipped")
"""Of a final student on a data set, see `dopd_vl.evaluation.accuracy.Accuracy`."""


@dataclass
class CellResult:
    """One cell over its finished seeds. Accuracies are shares, 0 to 1; entropies nats a response token."""

    name: str
    seeds: list[int]
    missing: list[int]
    """seeds without scores yet"""
    scores: dict[str, dict[str, Summary]]
    """data set -> each of `SCORES`, and "accuracy/VARIANT" -> summary; without what could not be measured"""
    gap_recovered: Summary | None
    """(student after - before) / (teacher - before), on the first data set; None where teacher and student are equal"""
    against_baseline: Comparison | None
    holm_p: float | None = None
    forgetting: dict[str, Summary] = field(default_factory=dict)
    """data set -> best accuracy after an earlier stage, less that after the last (studies with stages)"""
    after_stage: dict[str, dict[str, Summary]] = field(default_factory=dict)
    """stage -> data set -> accuracy"""
    tuned: dict[str, Any] = field(default_factory=dict)
    """the values of the keys of `StudyConfig.tune` that it was run with"""


@dataclass
class StudyResult:
    """Everything that a study's runs came to so far."""

    data_sets: list[str]
    cells: list[CellResult]
    references: dict[str, dict[str, float | None]]
    """model that runs begin from or learn from -> data set -> accuracy; None: nothing was scored"""
    curves: list[dict[str, Any]]
    """rows (cell, stage, step, metric, mean, spread, seeds)"""
    paper: dict[str, Any] | None
    """table, column, pairs of (cell, ours, the paper's), Spearman's rho and p"""
    by_illusion: list[dict[str, Any]] = field(default_factory=list)
    """rows (cell, nats, rollouts, accuracy, gap) where the training set has illusion scores"""
    tried: list[dict[str, Any]] = field(default_factory=list)
    """rows (cell, values, accuracy, chosen) of what tuned values were chosen from: accuracy on `StudyConfig.tune_on`"""


def gather(config: StudyConfig, outcome: Outcome) -> StudyResult:
    """Put together what is finished; unfinished cells say which seeds are missing."""
    tried, runs, scored = outcome.tried, outcome.runs, outcome.scores
    by_cell: dict[str, list[Run]] = {run.cell.name: [] for run in [*tried, *runs]}
    for run in runs:
        by_cell[run.cell.name].append(run)
    data_sets = [name for name in score_sets(config, (tried or runs)[0]) if not (config.tune and name == TUNING)]
    main = data_sets[0]
    deployed = config.score_variants[0]
    references = {
        model: {data: found[deployed]["accuracy"] for data, found in scores["model"].items()}
        for model in dict.fromkeys(model for run in [*tried, *runs] for model in run.references)
        if (scores := scored.get(reference_folder(config, model))) is not None
    }
    cells = []
    accuracy: dict[str, dict[int, float]] = {}
    for name, some in by_cell.items():
        found = {run.seed: (run, scores) for run in some if (scores := scored.get(run.folder)) is not None}
        missing = [seed for seed in config.seeds if seed not in found]
        last = {seed: scores[run.last_stage] for seed, (run, scores) in found.items()}
        after = {seed: score[main][deployed]["accuracy"] for seed, score in last.items()}
        accuracy[name] = {seed: value for seed, value in after.items() if value is not None}
        recovered = [
            value
            for seed, share in accuracy[name].items()
            if (value := _gap_recovered(found[seed][0], references, main, share)) is not None
        ]
        cell = CellResult(
            name,
            sorted(found),
            missing,
            {data: _summaries(last.values(), data, config.score_variants) for data in data_sets} if last else {},
            summarise(recovered) if recovered else None,
            None,
            tuned=dict(some[0].cell.tuned) if some else {},
        )
        if config.stages and found:
            _add_stages(cell, found, data_sets, deployed, list(config.stages))
        cells.append(cell)
    _compare_all(cells, accuracy, {run.cell.name: run.cell.baseline for run in [*tried, *runs]})
    # A run that is not done may have damaged files.
    done = {name: [run for run in some if run.folder in scored] for name, some in by_cell.items()}
    curves, paper, by_illusion = _curves(done), _paper(config, cells, main), _by_illusion(done)
    return StudyResult(data_sets, cells, references, curves, paper, by_illusion, _tried(config, outcome))


def _tried(config: StudyConfig, outcome: Outcome) -> list[dict[str, Any]]:
    chosen = {run.cell.title for run in outcome.runs}
    return [
        {
            "cell": run.cell.name,
            "values": dict(run.cell.tuned),
            "accuracy": tuning_accuracy(config, run, outcome.scores),
            "chosen": run.cell.title in chosen,
        }
        for run in outcome.tried
    ]


def _summaries(scores: Iterable[Mapping[str, Any]], data: str, variants: list[str]) -> dict[str, Summary]:
    rows = [score[data] for score in scores]
    deployed = variants[0]
    # An older version did not measure all of them, and nothing may have been scored.
    values = {key: [row[deployed].get(key) for row in rows] for key in SCORES}
    values |= {f"accuracy/{variant}": [row[variant]["accuracy"] for row in rows] for variant in variants[1:]}
    return {key: summarise(some) for key, some in values.items() if None not in some}


def _gap_recovered(
    run: Run, references: Mapping[str, Mapping[str, float | None]], data: str, after: float
) -> float | None:
    found = [references[model][data] for model in run.references if model in references]
    scored = [share for share in found if share is not None]
    return gap_recovered(after, *scored) if len(scored) == 2 else None


def _add_stages(
    cell: CellResult, found: Mapping[int, tuple[Run, Any]], data_sets: list[str], variant: str, stages: list[str]
) -> None:
    for data in data_sets:
        after = {s: [scores[s][data][variant]["accuracy"] for _, scores in found.values()] for s in stages}
        if any(None in values for values in after.values()):
            continue
        for stage, values in after.items():
            cell.after_stage.setdefault(stage, {})[data] = summarise(values)
        if len(stages) > 1:
            earlier = zip(*(after[s] for s in stages[:-1]), strict=True)
            lost = [max(before) - last for before, last in zip(earlier, after[stages[-1]], strict=True)]
            cell.forgetting[data] = summarise(lost)


def _compare_all(
    cells: list[CellResult], accuracy: Mapping[str, Mapping[int, float]], baselines: Mapping[str, str | None]
) -> None:
    tested = []
    for cell in cells:
        baseline = baselines[cell.name]
        if baseline is not None and cell.name != baseline:
            cell.against_baseline = compare(dict(accuracy[cell.name]), dict(accuracy[baseline]))
            if cell.against_baseline is not None and cell.against_baseline.p is not None:
                tested.append((cell, cell.against_baseline.p))
    for (cell, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
        cell.holm_p = adjusted


def _curves(by_cell: Mapping[str, list[Run]]) -> list[dict[str, Any]]:
    rows = []
    for name, runs in by_cell.items():
        for number, (stage, _) in enumerate(runs[0].stages if runs else ()):
            values: dict[tuple[str, int], list[float]] = {}
            for run in runs:
                for row in read_rows(Path(run.stages[number][1].output_dir) / METRICS_FILE):
                    for key, value in row.items():
                        if (key in CURVES or key.startswith((SHARES, "eval_"))) and isinstance(value, int | float):
                            values.setdefault((key, row["step"]), []).append(float(value))
            for (metric, step), some in sorted(values.items()):
                summary = summarise(some)
                rows.append(
                    {
                        "cell": name,
                        "stage": stage,
                        "step": step,
                        "metric": metric,
                        "mean": summary.mean,
                        "spread": summary.spread,
                        "seeds": len(some),
                    }
                )
    return rows


def _by_illusion(by_cell: Mapping[str, list[Run]]) -> list[dict[str, Any]]:
    """The kept rollouts of all seeds and stages by their example's illusion score, in nats rounded down: how many, the
    share that is right, and the mean advantage gap of their tokens (None where nothing was verified, or has a gap)."""
    rows = []
    for name, runs in by_cell.items():
        by_score: dict[int, _OfScore] = {}
        for folder in (Path(config.output_dir) for run in runs for _, config in run.stages):
            for _, row in iterate_rows(folder / ROLLOUTS_FILE):
                if row.get("illusion_score") is not None:
                    by_score.setdefault(math.floor(row["illusion_score"]), _OfScore()).add(row)
        for nats, some in sorted(by_score.items()):
            rows.append({"cell": name, "nats": nats, "rollouts": some.rollouts, **some.means()})
    return rows


@dataclass
class _OfScore:
    """Sums over the rollouts of one illusion score: a run's may be gigabytes."""

    rollouts: int = 0
    judged: int = 0
    right: int = 0
    tokens: int = 0
    gap: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        self.rollouts += 1
        if row["correct"] is not None:
            self.judged += 1
            self.right += row["correct"]
        gaps = row.get("gap", ())
        self.tokens += len(gaps)
        self.gap += sum(gaps)

    def means(self) -> dict[str, float | None]:
        return {
            "accuracy": self.right / self.judged if self.judged else None,
            "gap": self.gap / self.tokens if self.tokens else None,
        }


def paper_column(table: str, column: str) -> dict[str, float]:
    """One column of a table of the paper's analyses, by row.

    Raises:
        ConfigurationError: there is no such table or column.
    """
    tables = yaml.safe_load(shipped("data/paper_analyses.yaml").read_text(encoding="utf-8"))["tables"]
    if table not in tables:
        raise ConfigurationError(f"paper.table: no table {table!r}, {nearest(table, tables)}")
    columns = tables[table]["columns"]
    if column not in columns:
        raise ConfigurationError(f"paper.column: no column {column!r}, {nearest(column, columns)}")
    at = columns.index(column)
    return {name: float(values[at]) for name, values in tables[table]["rows"].items()}


def _paper(config: StudyConfig, cells: list[CellResult], data: str) -> dict[str, Any] | None:
    if not config.paper:
        return None
    column = paper_column(config.paper["table"], config.paper["column"])
    pairs = [
        (cell.name, cell.scores[data]["accuracy"].mean, column[cell.name])
        for cell in cells
        if cell.name in column and cell.scores and "accuracy" in cell.scores[data]
    ]
    correlation = rank_correlation([ours for _, ours, _ in pairs], [theirs for _, _, theirs in pairs])
    rho, p = correlation if correlation is not None else (None, None)
    return {**config.paper, "pairs": pairs, "spearman": rho, "p": p}
