"""The card of a saved student: what it came from, how it was taught, how it scored. Its front matter is the hub's.

Everything in it is read from the run folder, so that the card says what the run recorded. Names that come from data or
from the file system are escaped: a card is shown as a web page.
"""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dopd_vl.common.configuration import read_config
from dopd_vl.common.files import read_rows, write_atomically
from dopd_vl.common.resources import NANO_PREFIX
from dopd_vl.common.run_layout import CARD_FILE, CONFIG_FILE, METRICS_FILE
from dopd_vl.common.visible import in_card
from dopd_vl.objectives.base import needs_teacher
from dopd_vl.objectives.build import build_objective
from dopd_vl.train_config import TrainConfig
from privileged.dataset import read_audit

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")
MAX_ROWS = 40
"""Sources of data that a table names."""


def write_card(student: Path, run: Path, facts: Mapping[str, Any], sees_images: bool) -> None:
    """Write the card into a folder that holds a student of `run`.

    Args:
        run: the run folder, with its config.yaml and metrics.jsonl.
        facts: `step` says after how many optimizer steps it was saved.
        sees_images: whether the student is a vision-language model.
    """
    config = read_config(TrainConfig, ["--config", str(run / CONFIG_FILE)], "model card")
    rows = [row for row in read_rows(run / METRICS_FILE) if row["step"] <= facts["step"]]
    write_atomically(student / CARD_FILE, model_card(config, facts["step"], rows, sees_images))


def model_card(config: TrainConfig, step: int, metrics: Sequence[Mapping[str, Any]], sees_images: bool) -> str:
    """The card's Markdown; `metrics` are rows of metrics.jsonl up to `step`."""
    lines = ["---", yaml.safe_dump(_front_matter(config, sees_images), sort_keys=False).strip(), "---", ""]
    lines += [
        f"# {in_card(Path(config.output_dir).name)}: a student distilled with dopd-vl",
        "",
        "It learnt on its own rollouts, from teachers that may have seen more than it did: the table says what.",
        "",
        *_table(("", "value"), _origin(config, step)),
        "## Data",
        "",
        *_table(("", "value"), [("trained on", in_card(Path(config.data.train).name)), *_of_data(config.data.train)]),
        "## Scores",
        "",
        *_scores(config, metrics),
        "## Limits",
        "",
        "The scores are of this run's own held-out data and say nothing of other tasks. The student inherits the "
        "biases of its base model, its teacher and its data. Licences of all three hold for it.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(config: TrainConfig, sees_images: bool) -> dict[str, Any]:
    base = config.model.student
    # The hub takes ids alone here; the name of a folder would be a link to somebody else's model.
    from_hub = not base.startswith(NANO_PREFIX) and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    return {
        **({"base_model": base} if from_hub else {}),
        "library_name": "transformers" if config.model.lora is None else "peft",
        "pipeline_tag": "image-text-to-text" if sees_images else "text-generation",
        "tags": ["dopd-vl", "distillation", "on-policy", "trl"],
    }


def _origin(config: TrainConfig, step: int) -> Iterator[tuple[str, str]]:
    objective = build_objective(config.objective.name, config.objective.settings)
    loop = config.training
    yield "base model", _model_name(config.model.student)
    if config.model.teacher is not None and needs_teacher(objective):
        yield "teacher", _model_name(config.model.teacher)
    yield "objective", in_card(config.objective.name)
    for name, value in asdict(objective).items():  # type: ignore[call-overload]
        yield f"objective, {in_card(name)}", in_card(value)
    yield "views", ", ".join(f"{in_card(source.policy)} on {in_card(source.view)}" for source in objective.sources())
    if any(source.view == "privileged" for source in objective.sources()):
        yield "privileged variant of the teacher", in_card(config.privilege.teacher_variant)
        yield "privileged variant of the student's copy", in_card(config.privilege.copy_variant)
    yield "shown to the student that learns", in_card(config.privilege.student_variant)
    yield "optimizer steps", f"{step} of {loop.max_steps}"
    yield "learning rate", f"{loop.learning_rate:g}, {in_card(loop.lr_scheduler_type)}"
    yield "rollouts per prompt", str(loop.num_generations)
    yield "longest response", f"{loop.max_completion_length} tokens"
    if config.model.lora is not None:
        yield "LoRA", f"rank {config.model.lora.r}, alpha {config.model.lora.alpha:g}"
    yield "seed", str(config.seed)
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    yield "made with", in_card(f"dopd-vl {version('dopd-vl')}") + f"; Python {platform.python_version()}, {libraries}"


def _model_name(name: str) -> str:
    """A hub id in full, of a folder only its own name: where it lies is nobody's business."""
    return in_card(name if not Path(name).exists() else Path(name).name)


def _of_data(folder: str) -> Iterator[tuple[str, str]]:
    audit = read_audit(Path(folder))
    if audit is None:
        yield "records", "unknown: the folder is not there any more"
        return
    yield "records", str(audit["records"])
    sources = list(audit["counts"]["sources"].items())
    for name, count in sources[:MAX_ROWS]:
        yield f"of {in_card(name)}", in_card(count)
    if len(sources) > MAX_ROWS:
        yield f"of {len(sources) - MAX_ROWS} other sources", str(sum(count for _, count in sources[MAX_ROWS:]))


def _scores(config: TrainConfig, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    scored = [row for row in metrics if "eval_accuracy" in row]
    if not scored or config.data.eval is None:
        return ["It was not scored while it was trained.", ""]
    first, last = scored[0], scored[-1]
    size = "" if config.data.eval_size is None else f", at most {config.data.eval_size} of its examples"
    names = [name for name in last if name.startswith("eval_") and isinstance(last[name], int | float)]
    rows = [(in_card(name.removeprefix("eval_")), _number(first.get(name)), _number(last[name])) for name in names]
    return [
        f"Greedy, by the verifiers of the tasks, on {in_card(Path(config.data.eval).name)}{size}. Accuracy is a share "
        "of 1, entropy is in nats per token; a name in front is what the student was shown, one behind is a source.",
        "",
        *_table(("", f"step {first['step']}", f"step {last['step']}"), rows[:MAX_ROWS]),
    ]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(heading: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)] + [""]
