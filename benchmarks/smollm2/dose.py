"""How much of the answer each variant gives away, and what it does for the pair before any distillation.

The doses of `configs/study/illusion-dose.yaml`: for every variant the illusion score of each held-out record, as the
guide sees it (docs/judging.md), and the accuracy of guide and learner that are shown it.
"""

import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.smollm2.data import PREPARED
from benchmarks.smollm2.models import MODELS, load, score
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import write_json
from dopd_vl.common.progress import Progress
from dopd_vl.common.quiet import quiet_libraries
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.views.rollouts import ViewRenderer
from privileged.annotators.judging import AnswerRequest, LocalScorer
from privileged.annotators.parts import replied_text
from privileged.audit.audit import JudgeConfig
from privileged.dataset import load_privileged
from privileged.rendering.variants import VARIANTS

DOSES = ("none", "other_hints", "hints", "hints_executed", "final_answer")
SETS = ("held-out-sequence", "held-out-math")
JUDGE = "smollm2-guide"
READERS = ("smollm2-guide", "smollm2-learner")
RESULTS = Path("benchmarks/results/smollm2-dose.json")


def measure_doses(output: Path = RESULTS, console: Console | None = None) -> dict[str, Any]:
    """Measure the scores and accuracies, and write them to `output`.

    Raises:
        UserError: the data sets or the models are not there.
    """
    console = console or Terminal()
    quiet_libraries()
    torch.set_num_threads(1)
    for name in READERS:
        if not (MODELS / name / "config.json").is_file():
            raise UserError(f"{MODELS / name}: not there; make it by python -m benchmarks.smollm2 models")
    sets = {data: list(load_privileged(PREPARED / data)) for data in SETS}
    _, judges_views = load(MODELS / JUDGE)
    # As in training, another example is drawn by the example's id.
    show = {data: ViewRenderer(judges_views, {}, others=examples) for data, examples in sets.items()}
    scorer = LocalScorer(JudgeConfig(kind="local", model=str(MODELS / JUDGE), device="cpu", dtype="float32"))
    found: dict[str, Any] = {"scores": {}, "accuracy": {}}
    total = sum(map(len, sets.values()))
    with Progress(console, "illusion scores", total * len(DOSES), "answers") as progress:
        for data, examples in sets.items():
            said = {}
            for dose in DOSES:
                shown = [show[data].with_another(example, dose) for example in examples]
                said[dose] = log_probabilities(scorer, shown, dose)
                progress.advance(len(examples))
            found["scores"][data] = {dose: summary(gains(said[dose], said["none"])) for dose in DOSES}
    with Progress(console, "accuracy", total * len(DOSES) * len(READERS), "responses") as progress:
        for reader in READERS:
            model, views = load(MODELS / reader)
            for data, examples in sets.items():
                for dose in DOSES:
                    shown = [show[data].with_another(example, dose) for example in examples]
                    estimate = score(model, views, shown, dose, progress)
                    found["accuracy"].setdefault(reader, {}).setdefault(data, {})[dose] = estimate
    write_json(output, found)
    tell(console, table(found))
    return found


def log_probabilities(scorer: LocalScorer, examples: Sequence[Mapping[str, Any]], variant: str) -> list[float]:
    """Of each gold answer in nats, said at once by the judge, who is shown the variant."""

    async def say() -> list[float]:
        replies = []
        for example in examples:
            messages = VARIANTS[variant].draw_up(example).messages
            replies.append(await scorer.generate(AnswerRequest(tuple(messages), (), example["answer"])))
        return [float(json.loads(replied_text(reply))["log_probability"]) for reply in replies]

    return asyncio.run(say())


def gains(shown: Sequence[float], plain: Sequence[float]) -> list[float]:
    """The illusion score of each record."""
    return [with_it - without for with_it, without in zip(shown, plain, strict=True)]


def summary(scores: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, quartiles and the scores themselves, rounded, in nats.

    >>> summary([0.0, 1.0, 2.0, 3.0, 4.0])["quartiles"]
    [1.0, 2.0, 3.0]
    """
    quartiles = statistics.quantiles(scores, n=4, method="inclusive")
    return {
        "mean": round(statistics.mean(scores), 3),
        "standard_deviation": round(statistics.stdev(scores), 3),
        "quartiles": [round(q, 3) for q in quartiles],
        "records": [round(score, 3) for score in scores],
    }


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table: a row for each dose, with the score's mean and the readers' accuracies in each source."""
    head = [f"{data}, {what}" for data in SETS for what in ("nats", *READERS)]
    lines = [f"| shown | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for dose in DOSES:
        cells = []
        for data in SETS:
            score = found["scores"][data][dose]
            cells.append(f"{score['mean']:.2f} ± {score['standard_deviation']:.2f}")
            cells += [f"{found['accuracy'][reader][data][dose]['accuracy']:.0%}" for reader in READERS]
        lines.append(f"| {dose} | {' | '.join(cells)} |")
    return "\n".join(lines)
