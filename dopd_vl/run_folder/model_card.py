"""The card of a saved student: what it came from, how it was taught, how it scored. Its front matter is the hub's.

Everything in it is the trainer's own: `dopd-vl train`, and `save_model` and `push_to_hub` from Python, write the same
card. Names that come from data or from the file system are escaped: a card is shown as a web page.
"""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.compute
import yaml
from datasets import Dataset

from dopd_vl.common.files import write_atomically
from dopd_vl.common.run_layout import CARD_FILE
from dopd_vl.common.visible import in_card
from dopd_vl.objectives.base import Objective, Requirements, needs_teacher

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")
MAX_ROWS = 40
"""Sources of data that a table names."""
PAPER = "2606.30626"
CITATION = """\
    @article{yu2026dopd,
      title = {DOPD: Dual On-policy Distillation},
      author = {Xinlei Yu and Gen Li and Qingyi Si and others},
      journal = {arXiv preprint arXiv:2606.30626},
      year = {2026}
    }"""

_TIMINGS = ("runtime", "per_second")


@dataclass(frozen=True)
class DataFacts:
    """Of a data set: its name, where it has one, and what a card counts. Of a stream nothing is known beforehand."""

    name: str | None = None
    records: int | None = None
    sources: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Any) -> "DataFacts":
        """What a `datasets.Dataset` tells; of several by name, that they are several."""
        if isinstance(dataset, Mapping):
            return cls(", ".join(dataset), sum(map(len, dataset.values())))
        if not isinstance(dataset, Dataset):
            return cls()
        counts = {}
        if "source" in dataset.column_names:
            column = dataset.select_columns("source").with_format("arrow")[:]["source"]
            counts = {str(item["values"]): item["counts"] for item in pyarrow.compute.value_counts(column).to_pylist()}
        return cls(dataset.info.dataset_name, len(dataset), counts)


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        name: of the student, a run's folder.
        arguments: of the trainer, a `DopdConfig`.
        step, steps: optimizer steps, taken and to take.
        metrics: the rows that the trainer logged.
        lora: rank and alpha of its adapters.
        train, eval: the data; `eval` is None where nothing was scored.
    """

    name: str
    student: str
    teachers: Sequence[str]
    objective: Objective
    arguments: Any
    step: int
    steps: int
    metrics: Sequence[Mapping[str, Any]]
    train: DataFacts
    eval: DataFacts | None
    sees_images: bool = False
    lora: tuple[int, float] | None = None

    @classmethod
    def of(cls, trainer: Any) -> "CardFacts":
        """Of a `DopdTrainer`, as it stands."""
        adapters = getattr(trainer.models.bare("student"), "peft_config", {})
        lora = next(((config.r, config.lora_alpha) for config in adapters.values() if hasattr(config, "r")), None)
        return cls(
            name=Path(trainer.args.output_dir).resolve().name,
            student=trainer.models.bare("student").config._name_or_path,
            teachers=trainer.teacher_names(),
            objective=trainer.objective,
            arguments=trainer.args,
            step=trainer.state.global_step,
            steps=max(trainer.state.max_steps, trainer.state.global_step),
            metrics=trainer.state.log_history,
            train=DataFacts.of(trainer.train_dataset),
            eval=None if trainer.eval_dataset is None else DataFacts.of(trainer.eval_dataset),
            sees_images=trainer.views.reads_images,
            lora=lora,
        )


def write_card(folder: Path, trainer: Any) -> None:
    """Write the card of a trainer's student, as it stands, into a folder."""
    write_atomically(folder / CARD_FILE, model_card(CardFacts.of(trainer)))


def model_card(facts: CardFacts) -> str:
    """The card's Markdown."""
    lines = ["---", yaml.safe_dump(_front_matter(facts), sort_keys=False).strip(), "---", ""]
    lines += [
        f"# {in_card(facts.name)}: a student distilled with dopd-vl",
        "",
        "It learnt on its own rollouts, from teachers that may have seen more than it did: the table says what.",
        "",
        *_table(("", "value"), _origin(facts)),
        "## Data",
        "",
        *_table(("", "value"), _of_data(facts.train)),
        "## Scores",
        "",
        *_scores(facts),
        "## Limits",
        "",
        "The scores are of this run's own held-out data and say nothing of other tasks. The student inherits the "
        "biases of its base model, its teacher and its data. Licences of all three hold for it.",
        "",
        "## Citation",
        "",
        *_citation(facts.objective),
        "",
    ]
    return "\n".join(lines)


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    # The hub takes ids alone here; the name of a folder would be a link to somebody else's model.
    from_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", facts.student) and not Path(facts.student).exists()
    return {
        **({"base_model": facts.student} if from_hub else {}),
        "library_name": "transformers" if facts.lora is None else "peft",
        "pipeline_tag": "image-text-to-text" if facts.sees_images else "text-generation",
        "tags": [
            "dopd-vl",
            "distillation",
            "on-policy",
            "trl",
            *(f"arxiv:{paper}" for paper in _papers(facts.objective)),
        ],
    }


def _papers(objective: Objective) -> list[str]:
    return list(dict.fromkeys([PAPER, getattr(objective, "paper", PAPER)]))


def _origin(facts: CardFacts) -> Iterator[tuple[str, str]]:
    objective, arguments = facts.objective, facts.arguments
    yield "base model", _model_name(facts.student)
    if facts.teachers and needs_teacher(objective):
        yield "teacher", ", ".join(map(_model_name, facts.teachers))
    yield "objective", in_card(objective.name)
    settings: dict[str, Any] = asdict(objective) if is_dataclass(objective) else {}
    for name, value in settings.items():
        yield f"objective, {in_card(name)}", in_card(value)
    yield "views", ", ".join(f"{in_card(source.policy)} on {in_card(source.view)}" for source in objective.sources())
    if any(source.view == "privileged" for source in objective.sources()):
        yield "privileged variant of the teacher", in_card(arguments.teacher_variant)
        yield "privileged variant of the student's copy", in_card(arguments.copy_variant)
    shown = Requirements.of(facts.objective).shown_to_student(arguments.student_variant)
    yield "shown to the student that learns", in_card(shown)
    yield "optimizer steps", f"{facts.step} of {facts.steps}"
    scheduler = arguments.lr_scheduler_type
    yield "learning rate", f"{arguments.learning_rate:g}, {in_card(getattr(scheduler, 'value', scheduler))}"
    yield "rollouts per prompt", str(arguments.num_generations)
    yield "longest response", f"{arguments.max_completion_length} tokens"
    if facts.lora is not None:
        yield "LoRA", f"rank {facts.lora[0]}, alpha {facts.lora[1]:g}"
    yield "seed", str(arguments.seed)
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    yield "made with", in_card(f"dopd-vl {version('dopd-vl')}") + f"; Python {platform.python_version()}, {libraries}"


def _model_name(name: str) -> str:
    """A hub id in full, of a folder only its own name: where it lies is nobody's business."""
    return in_card(name if not Path(name).exists() else Path(name).name)


def _of_data(data: DataFacts) -> Iterator[tuple[str, str]]:
    if data.name is not None:
        yield "trained on", in_card(data.name)
    yield "records", "unknown: a stream" if data.records is None else str(data.records)
    sources = list(data.sources.items())
    for name, count in sources[:MAX_ROWS]:
        yield f"of {in_card(name)}", in_card(count)
    if len(sources) > MAX_ROWS:
        yield f"of {len(sources) - MAX_ROWS} other sources", str(sum(count for _, count in sources[MAX_ROWS:]))


def _scores(facts: CardFacts) -> list[str]:
    scored = [row for row in facts.metrics if any(name.startswith("eval_") for name in row)]
    if not scored or facts.eval is None:
        return ["It was not scored while it was trained.", ""]
    first, last = scored[0], scored[-1]
    names = [
        name
        for name in sorted(last)  # a run that was taken up has them in this order, too
        if name.startswith("eval_") and isinstance(last[name], int | float) and not name.endswith(_TIMINGS)
    ]
    rows = [("accuracy", "not scored", "not scored")] if "eval_accuracy" not in last else []
    rows += [(in_card(name.removeprefix("eval_")), _number(first.get(name)), _number(last[name])) for name in names]
    name = "held-out data" if facts.eval.name is None else in_card(facts.eval.name)
    size = "" if facts.eval.records is None else f", {facts.eval.records} examples"
    return [
        f"Greedy, by the verifiers of the tasks, on {name}{size}. Accuracy is a share of 1, entropy is in nats per "
        "token; a name in front is what the student was shown, one behind is a source.",
        "",
        *_table(("", f"step {first['step']}", f"step {last['step']}"), rows[:MAX_ROWS]),
    ]


def _citation(objective: Objective) -> list[str]:
    own = [paper for paper in _papers(objective) if paper != PAPER]
    return [
        *(f"The objective is that of arXiv {paper}; the toolkit follows:" for paper in own),
        *([""] if own else []),
        CITATION,
    ]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(heading: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)] + [""]
