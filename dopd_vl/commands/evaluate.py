"""`dopd-vl evaluate`: score a model on a privileged data set."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dopd_vl.configuration import read_config
from dopd_vl.errors import ConfigurationError


def main(argv: Sequence[str]) -> int:
    from dopd_vl.evaluation.code import allow_code
    from dopd_vl.evaluation.run import EvaluateConfig, evaluate_model
    from dopd_vl.files import write_json, write_jsonl
    from dopd_vl.terminal import quiet_libraries
    from dopd_vl.training.run import load_examples
    from privileged import VARIANTS

    config = read_config(EvaluateConfig, argv, "dopd-vl evaluate")
    if not config.data:
        raise ConfigurationError("data: no data set given; `dopd-vl prepare` writes one")
    if config.variant not in VARIANTS:
        raise ConfigurationError(f"variant: unknown variant {config.variant!r}, known: {', '.join(VARIANTS)}")
    if config.allow_code:
        allow_code()
    quiet_libraries()
    console = Console()
    scores, predictions, refused = evaluate_model(
        config.model,
        load_examples(config.data, config.size),
        config.variant,
        config.max_new_tokens,
        config.batch_size,
        config.dtype,
        config.trust_remote_code,
        console=console,
    )
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "predictions.jsonl", [asdict(prediction) for prediction in predictions])
    write_jsonl(folder / "refused.jsonl", [{"id": identifier, "reason": reason} for identifier, reason in refused])
    write_json(folder / "scores.json", {**json.loads(json.dumps(asdict(config))), **scores.as_dict()})
    table = Table("", "accuracy", title=f"{config.model} on {config.data} ({config.variant})")
    for source, accuracy in scores.by_source.items():
        table.add_row(source, f"{accuracy:.1%}")
    table.add_row("all", f"{scores.accuracy:.1%}", style="bold")
    console.print(table)
    unscored = f", {scores.unscored} without a verdict" if scores.unscored else ""
    summary = f"{scores.count - scores.unscored} scored, {scores.refused} passed over{unscored}: {folder}"
    console.print(summary, highlight=False, soft_wrap=True)
    return 0
