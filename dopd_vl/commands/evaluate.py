"""`dopd-vl evaluate`: score a model on a privileged data set, or on the paper's benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.resources import NANO_PREFIX
from dopd_vl.common.run_layout import folder_of_model
from dopd_vl.common.terminal import Terminal, show_table, tell
from dopd_vl.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from dopd_vl.evaluation.estimates import Estimate
    from dopd_vl.evaluation.run import Evaluation

NOT_SCORED = "not scored"
INTERVALS = {"wilson": "Wilson score interval", "bootstrap": "bootstrap over questions"}


def main(argv: Sequence[str]) -> int:
    config = read_config(EvaluateConfig, argv, "dopd-vl evaluate")
    config.check()
    if not config.suite:
        return _evaluate_data(config)
    from dopd_vl.harnesses.suite import run_suite

    (folder,) = default_folders(config).values()
    return run_suite(config, folder, Terminal())


def default_folders(config: EvaluateConfig) -> dict[str, Path]:
    """Each model's folder: `output_dir` where there is one model and it is given, else one below it (or below
    runs/evaluate) called `MODEL-WHAT` after the last part of each name, with `-VARIANT` for another than none."""
    models = config.models()
    if config.output_dir and len(models) == 1:
        return {models[0]: Path(config.output_dir)}
    what = config.suite.replace(",", "+") if config.suite else Path(config.data).resolve().name
    variant = "" if config.suite or config.variant == "none" else f"-{config.variant}"
    below = Path(config.output_dir or "runs/evaluate")
    return {model: below / f"{name}-{what}{variant}" for model, name in short_names(models).items()}


def short_names(models: Sequence[str]) -> dict[str, str]:
    """What each model is called in a table and as a folder: the last part of its path, or as many as tell them apart.

    >>> short_names(["runs/dopd/seed-0/student", "runs/opd/seed-0/student"])
    {'runs/dopd/seed-0/student': 'dopd-seed-0', 'runs/opd/seed-0/student': 'opd-seed-0'}
    """
    paths = [Path(model.removeprefix(NANO_PREFIX)).resolve() for model in models]
    ends = [folder_of_model(path).parts[1:] for path in paths]
    for length in range(1, max(map(len, ends)) + 1):
        names = ["-".join(parts[-length:]) for parts in ends]
        if len(set(names)) == len(names):
            return dict(zip(models, names, strict=True))
    raise ConfigurationError(f"model: {', '.join(models)} are one folder")


def _evaluate_data(config: EvaluateConfig) -> int:
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.evaluation.code import allow_code
    from dopd_vl.evaluation.run import check_model, evaluate_in_folder
    from dopd_vl.training.run import load_examples
    from privileged import VARIANTS

    if config.variant not in VARIANTS:
        raise ConfigurationError(f"variant: unknown variant {config.variant!r}, known: {', '.join(VARIANTS)}")
    if config.allow_code:
        allow_code()
    quiet_libraries()
    console = Terminal()
    dataset = load_examples(config.data, config.size)
    folders = default_folders(config)
    of_each = {model: replace(config, model=model) for model in folders}
    for one in of_each.values():
        check_model(one)  # all of them, before the first takes its time
    done = {model: evaluate_in_folder(one, dataset, folders[model], console) for model, one in of_each.items()}
    if len(done) == 1:
        _show_by_source(config, next(iter(done.values())), console)
    else:
        _show_models(config, done, console)
    methods = {estimate.method for evaluation in done.values() for estimate in evaluation.estimates.values()}
    if methods:
        tell(console, f"intervals: {' and '.join(INTERVALS[method] for method in sorted(methods))}")
    for model, evaluation in done.items():
        _tell_of(evaluation, folders[model], console)
    return 0


def _show_by_source(config: EvaluateConfig, evaluation: "Evaluation", console: Console) -> None:
    rows = [(source, *_cells(estimate)) for source, estimate in evaluation.by_source.items()]
    sums = [
        ("all" if name.startswith("avg") else f"all, {name}", *_cells(estimate))
        for name, estimate in evaluation.estimates.items()
    ]
    title = f"{config.model} on {config.data} ({config.variant})"
    head = ("source", f"avg@{config.sampling.samples}", "95 % interval")
    show_table(console, head, rows, title, sums=sums or [("all", NOT_SCORED, "")])


def _show_models(config: EvaluateConfig, done: Mapping[str, "Evaluation"], console: Console) -> None:
    """A row a model: all questions with their interval, pass@k, and each source where there are several."""
    names = short_names(list(done))
    estimates = list(dict.fromkeys(name for evaluation in done.values() for name in evaluation.estimates))
    sources = list(dict.fromkeys(source for evaluation in done.values() for source in evaluation.by_source))
    sources = sources if len(sources) > 1 else []
    first, *others = estimates or [f"avg@{config.sampling.samples}"]
    rows = []
    for model, evaluation in done.items():
        found = evaluation.estimates
        row = [names[model], *(_cells(found[first]) if first in found else (NOT_SCORED, ""))]
        row += [f"{found[name].value:.1%}" if name in found else "" for name in others]
        by_source = evaluation.by_source
        row += [f"{by_source[source].value:.1%}" if source in by_source else "" for source in sources]
        rows.append(row)
    head = ("model", first, "95 % interval", *others, *sources)
    show_table(console, head, rows, f"{len(done)} models on {config.data} ({config.variant})")


def _tell_of(evaluation: "Evaluation", folder: Path, console: Console) -> None:
    from dopd_vl.evaluation.accuracy import why_unscored

    scores = evaluation.scores
    unscored = f", {scores.unscored} without a verdict" if scores.unscored else ""
    if not evaluation.estimates:
        why = why_unscored(evaluation.predictions, evaluation.refused)
        tell(console, f"not scored: {why}")
    summary = f"{scores.count - scores.unscored} responses scored, {scores.refused} questions passed over{unscored}"
    tell(console, f"{summary}: {folder}")
    if undecided := [prediction for prediction in evaluation.predictions if prediction.undecided]:
        told = f"{len(undecided)} responses count as wrong, as their verifier came to no verdict; the first: "
        told += f"{undecided[0].id}: {undecided[0].undecided}"
        tell(console, told)


def _cells(estimate: "Estimate") -> tuple[str, str]:
    return f"{estimate.value:.1%}", f"{estimate.low:.1%} to {estimate.high:.1%}"
