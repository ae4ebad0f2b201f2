"""Students of chosen strength: one supervised training, saved each time that its held-out accuracy passes a level.

    python -m benchmarks.nano ladder --output runs/ladder --family text

What a method does to a student depends on how good the student is when distillation begins. A ladder gives students
that differ in nothing else: one architecture, one seed, one stream of examples, stopped earlier or later. Accuracy is
without privileged input, on held-out records.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks.nano.build import save, shared_tokenizer, untrained, write_scores
from benchmarks.nano.eyes import name_cells
from benchmarks.nano.scoring import accuracy
from benchmarks.nano.sft import Phase, Recipe, Step, make_rows, train
from dopd_vl.common.configuration import check_choice
from dopd_vl.common.progress import Progress
from dopd_vl.nano.models import SHAPES, Shape
from dopd_vl.nano.source import WORLDS, NanoSource
from dopd_vl.views import ViewProcessor

LEVELS = (0.1, 0.3, 0.5, 0.7)
WATCH_EVERY = 25  # steps
SCORED = 300  # held-out records


@dataclass(frozen=True)
class Rungs:
    """How the students of a ladder learn, and the held-out tasks that place them."""

    family: str
    shape: Shape
    recipe: Recipe
    tasks: tuple[str, ...] | None = None


def _text(shape: Shape, plain: float, variants: Sequence[str] = ("hints",)) -> Rungs:
    """`plain`: the share of prompts without privileged input; the others have each of `variants` as often."""
    return Rungs("text", shape, Recipe((Phase(1_500, 16_000, _shares(plain, variants)),)))


def _vision(plain: float, variants: Sequence[str] = ("box_label",)) -> Rungs:
    phase = Phase(3_000, 16_000, _shares(plain, variants), VISION_TASKS)
    return Rungs("vision", SHAPES["vision-student"], Recipe((phase,), sight_steps=100, batch=32), VISION_TASKS)


def _shares(plain: float, variants: Sequence[str]) -> dict[str, float]:
    return {"none": plain, **dict.fromkeys(variants, (1 - plain) / len(variants))}


VISION_TASKS = ("read", "add", "count")
TEXT_VARIANTS = ("hints", "hints_executed", "hint_summary", "final_answer")
VISION_VARIANTS = ("box_label", "box_caption", "caption", "final_answer")
LADDERS: dict[str, Rungs] = {
    # Nearly all prompts have hints: students that lean on the privileged input.
    "text": _text(SHAPES["text-student"], plain=0.1),
    # Half of them have: students that do as well without it.
    "text-even": _text(SHAPES["text-student"], plain=0.5),
    # Teachers that know some without hints and nearly all with them.
    "text-guide": _text(SHAPES["text-teacher"], plain=0.03),
    # Teachers that need the privileged input themselves.
    "text-teacher": _text(SHAPES["text-teacher"], plain=0.01),
    # Other sizes: a smaller student, and a teacher between the student and `text-guide`.
    "text-small": _text(Shape("text", 64, 2, 96), plain=0.1),
    "text-middle": _text(Shape("text", 96, 3, 192), plain=0.03),
    # Students and teachers that know every variant of the privileged input; so does `vision-variants`.
    "text-variants": _text(SHAPES["text-student"], 0.1, TEXT_VARIANTS),
    "text-variants-guide": _text(SHAPES["text-teacher"], 0.03, TEXT_VARIANTS),
    "vision": _vision(plain=0.15),
    "vision-even": _vision(plain=0.5),
    "vision-variants": _vision(0.05, VISION_VARIANTS),
}


class _TopReached(Exception):
    pass


def build_ladder(
    output: Path | str,
    name: str,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Train one student of `LADDERS` and save it below `output` as `NAME-LEVEL` (per cent) at every level it passes.

    Returns:
        the contents of each rung's scores.json, by folder name. A level that was never passed is missing.
    """
    check_choice(name, LADDERS, "family")
    rungs, console = LADDERS[name], console or Console()
    torch.set_num_threads(1)
    model, views = untrained(rungs.shape, shared_tokenizer(), seed)
    recipe = rungs.recipe
    rows = [make_rows(phase, rungs.family, views, seed) for phase in recipe.phases]
    if recipe.sight_steps:
        processor: Any = views.processing_class
        name_cells(model, processor, recipe.sight_steps, seed)
    with Progress(console, f"ladder {name}", recipe.steps, "steps") as progress:
        climb = _Climb(Path(output), name, rungs, model, views, sorted(levels), progress, seed)
        with suppress(_TopReached):
            train(model, views, recipe, rows, seed, on_step=climb)
    return climb.saved


class _Climb:
    """After some steps, looks where the student stands and saves it when it has passed the next level."""

    def __init__(
        self,
        output: Path,
        name: str,
        rungs: Rungs,
        model: PreTrainedModel,
        views: ViewProcessor,
        levels: Sequence[float],
        progress: Progress,
        seed: int,
    ):
        self.output, self.name, self.rungs, self.seed = output, name, rungs, seed
        self.model, self.views, self.progress = model, views, progress
        self.levels = list(levels)
        self.saved: dict[str, dict[str, Any]] = {}
        options = {"world": rungs.family, "split": "heldout", "size": SCORED, "seed": 0}
        self.examples = list(NanoSource(options | ({"tasks": list(rungs.tasks)} if rungs.tasks else {})))
        self.variants = ("none", WORLDS[rungs.family].default_variant)

    def __call__(self, step: Step) -> None:
        self.progress.advance(facts=f"loss {step.loss:.3f}, {len(self.saved)} saved")
        if step.number % WATCH_EVERY:
            return
        quick = accuracy(self.model, self.views, self.examples[:100], "none")["all"]
        if quick < self.levels[0] - 0.02:
            self.model.train()
            return
        scores = {name: accuracy(self.model, self.views, self.examples, name) for name in self.variants}
        if scores["none"]["all"] >= self.levels[0]:
            passed = max(level for level in self.levels if level <= scores["none"]["all"])
            self.levels = [level for level in self.levels if level > passed]
            self._save(passed, step, scores)
        self.model.train()
        if not self.levels:
            raise _TopReached

    def _save(self, level: float, step: Step, scores: dict[str, Any]) -> None:
        folder = self.output / f"{self.name}-{round(100 * level)}"
        save(self.model, self.views, folder)
        facts = {"step": step.number, "seed": self.seed, "heldout": SCORED, "accuracy": scores}
        write_scores(folder, facts)
        self.saved[folder.name] = facts
