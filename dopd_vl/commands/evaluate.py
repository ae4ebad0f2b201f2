"""`dopd-vl evaluate`: score a model on a privileged data set, or on the paper's benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.resources import NANO_PREFIX
from dopd_vl.common.run_layout import name_of_model
from dopd_vl.common.terminal import Terminal, show, tell
from dopd_vl.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from dopd_vl.evaluation.estimates import Estimate
    from dopd_vl.evaluation.run import Evaluation


def main(argv: Sequence[str]) -> int:
    config = read_config(EvaluateConfig, argv, "dopd-vl evaluate")
    config.check()
    folder = Path(config.output_dir) if config.output_dir else default_folder(config)
    if not config.suite:
        return _evaluate_data(config, folder)
    from dopd_vl.harnesses.suite import run_suite

    return run_suite(config, folder, Terminal())


def default_folder(config: EvaluateConfig) -> Path:
    """`runs/evaluate/MODEL-WHAT`, after the last part of each name."""
    name = name_of_model(Path(config.model.removeprefix(NANO_PREFIX)).resolve())
    what = config.suite.replace(",", "+") if config.suite else Path(config.data).resolve().name
    return Path("runs/evaluate") / f"{name}-{what}"


def _evaluate_data(config: EvaluateConfig, folder: Path) -> int:
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.evaluation.code import allow_code
    from dopd_vl.evaluation.run import evaluate_in_folder
    from dopd_vl.training.run import load_examples
    from privileged import VARIANTS

    if config.variant not in VARIANTS:
        raise ConfigurationError(f"variant: unknown variant {config.variant!r}, known: {', '.join(VARIANTS)}")
    if config.allow_code:
        allow_code()
    quiet_libraries()
    console = Terminal()
    evaluation = evaluate_in_folder(config, load_examples(config.data, config.size), folder, console)
    _print(config, evaluation, folder, console)
    return 0


def _print(config: EvaluateConfig, evaluation: "Evaluation", folder: Path, console: Console) -> None:
    from rich.table import Table

    from dopd_vl.evaluation.accuracy import why_unscored

    samples = config.sampling.samples
    table = Table("", f"avg@{samples}", "95 % interval", title=f"{config.model} on {config.data} ({config.variant})")
    for source, estimate in evaluation.by_source.items():
        table.add_row(source, *_cells(estimate))
    for name, estimate in evaluation.estimates.items():
        table.add_row("all" if name.startswith("avg") else f"all, {name}", *_cells(estimate), style="bold")
    if not evaluation.estimates:
        table.add_row("all", "not scored", "", style="bold")
    show(console, table)
    scores = evaluation.scores
    if evaluation.estimates:
        method = next(iter(evaluation.estimates.values())).method
        how = {"wilson": "Wilson score interval", "bootstrap": "bootstrap over questions"}[method]
        tell(console, f"intervals: {how}")
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
