"""Train the nano families from nothing and save them as Hugging Face folders with their measured scores."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, Qwen2Tokenizer

from benchmarks.nano.eyes import name_cells
from benchmarks.nano.scoring import accuracy, heldout, load, score
from benchmarks.nano.sft import MIXTURES, Phase, Recipe, Step, make_rows, train
from dopd_vl.common.configuration import check_choice
from dopd_vl.common.progress import Progress
from dopd_vl.nano.models import SHAPES, Shape, build_model
from dopd_vl.nano.source import WORLDS
from dopd_vl.nano.tokenizer import corpus, nano_processor, train_tokenizer
from dopd_vl.views import ViewProcessor, processor_for

FAMILIES = ("vision", "text")
PLAIN = {"none": 1.0}
# The text student stops before it knows all the words, and sees more hints than the teacher, to lean on them.
HINTED = {"none": 0.02, "hints": 0.8, "hints_executed": 0.06, "hint_summary": 0.06, "final_answer": 0.06}
# The vision student has poor eyes, which nothing here corrects, and sees more boxes than the teacher, to lean on them.
BOXED = {**MIXTURES["vision"], "none": 0.03, "box_label": 0.72}
# The vision teacher learns last to rely on labels.
LABELLED = {**MIXTURES["vision"], "none": 0.25, "box_label": 0.5}
# Short prompts of every task first; prompts with privilege, up to five times as long, come last.
# Several recipes follow one another, each from the weights that the one before would have saved.
RECIPES: dict[str, tuple[Recipe, ...]] = {
    "vision-teacher": (
        Recipe(
            (
                Phase(3_500, 16_000, PLAIN),
                Phase(1_800, 14_000, MIXTURES["vision"]),
            ),
            sight_steps=400,
            batch=16,
        ),
        Recipe((Phase(800, 12_800, LABELLED),), batch=16, learning_rate=8e-4),
    ),
    "vision-student": (
        Recipe(
            (
                Phase(400, 1_600, PLAIN),
                Phase(3_200, 16_000, BOXED),
            ),
            sight_steps=12,
            frozen_sight=True,
            batch=16,
        ),
        Recipe((Phase(400, 6_400, BOXED),), sight_steps=30, frozen_sight=True, batch=16, learning_rate=8e-4),
    ),
    "text-teacher": (Recipe((Phase(350, 10_000, PLAIN), Phase(450, 12_000, MIXTURES["text"]))),),
    "text-student": (Recipe((Phase(60, 1_600, PLAIN), Phase(380, 8_000, HINTED))),),
}
CORPUS_RECORDS = 600  # of each world, for the tokenizer
SCORES_FILE = "scores.json"
SCORED = 600  # held-out records for scores.json
WATCHED = 120  # held-out records for the accuracy shown while training
WATCH_EVERY = 200  # steps


def build(
    output: Path | str,
    family: str = "all",
    seed: int = 0,
    model: str | None = None,
    shrink: int = 1,
    scored: int = SCORED,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Train and save `vision-teacher`, `vision-student`, `text-teacher`, `text-student` below `output`.

    Args:
        family: "vision", "text" or "all".
        model: only this one of the four; the others do not change it.
        seed: of the weights, the records and their order; the tokenizer is the same for every seed.
        shrink: divides the steps and rows of every recipe, for a quick trial of the whole way.
        scored: held-out records that the final scores are measured on.

    Returns:
        the contents of each model's scores.json, by model name.
    """
    check_choice(family, (*FAMILIES, "all"), "family")
    if model is not None:
        check_choice(model, SHAPES, "model")
    names = [name for name, shape in SHAPES.items() if family in ("all", shape.family) and model in (None, name)]
    console = console or Console()
    command = f"python -m benchmarks.nano build --output DIR --family {family} --seed {seed}"
    command += f" --shrink {shrink}" if shrink > 1 else ""
    torch.set_num_threads(1)  # models this small lose more to the threads' coordination than they gain
    tokenizer = shared_tokenizer()
    command += f" --model {model}" if model else ""
    return {
        name: _build_model(Path(output) / name, name, tokenizer, seed, shrink, scored, command, console)
        for name in names
    }


def _build_model(
    folder: Path,
    name: str,
    tokenizer: Qwen2Tokenizer,
    seed: int,
    shrink: int,
    scored: int,
    command: str,
    console: Console,
) -> dict[str, Any]:
    start = time.monotonic()
    world = SHAPES[name].family
    recipes = [shrunk(recipe, shrink) for recipe in RECIPES[name]]
    model, views = untrained(SHAPES[name], tokenizer, seed)
    curve: list[dict[str, float]] = []
    for stage, recipe in enumerate(recipes):
        curve += _follow(recipe, name, model, views, seed + stage, console)
    save(model, views, folder)
    reloaded, views = load(folder)
    scores: dict[str, Any] = {
        "model": name,
        "parameters": model.num_parameters(),
        "accuracy": score(reloaded, views, world, scored),
        "heldout": {"size": scored, "seed": 0},
        "seed": seed,
        "command": command,
        "recipe": [asdict(recipe) for recipe in recipes],
        "curve": curve,
        "seconds": round(time.monotonic() - start),
    }
    write_scores(folder, scores)
    shown = ", ".join(f"{variant} {shares['all']:.1%}" for variant, shares in scores["accuracy"].items())
    console.print(f"{name}: {shown} -> {folder}", highlight=False)
    return scores


def _follow(
    recipe: Recipe, name: str, model: PreTrainedModel, views: ViewProcessor, seed: int, console: Console
) -> list[dict[str, float]]:
    """Train in place by one recipe; returns the held-out accuracy on the way."""
    world = SHAPES[name].family
    model.requires_grad_(True)  # the recipe before may have frozen a part
    with Progress(console, f"{name}: prompts", sum(phase.rows for phase in recipe.phases), "rows") as progress:
        rows = [make_rows(phase, world, views, seed, on_row=progress.advance) for phase in recipe.phases]
    if recipe.sight_steps:
        with Progress(console, f"{name}: sight", recipe.sight_steps, "steps") as progress:
            processor: Any = views.processing_class
            name_cells(model, processor, recipe.sight_steps, seed, on_step=partial(_tell_loss, progress))
    with Progress(console, name, recipe.steps, "steps") as progress:
        watch = _Watch(model, views, world, progress, recipe)
        train(model, views, recipe, rows, seed, on_step=watch)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())  # as `save` stores it
    return watch.curve


def _tell_loss(progress: Progress, step: int, loss: float) -> None:
    progress.advance(facts=f"loss {loss:.3f}")


def shrunk(recipe: Recipe, divisor: int) -> Recipe:
    """The recipe with its steps and rows divided, each at least a batch."""
    phases = [
        replace(phase, steps=max(1, phase.steps // divisor), rows=max(recipe.batch, phase.rows // divisor))
        for phase in recipe.phases
    ]
    sight_steps = -(-recipe.sight_steps // divisor)
    return replace(recipe, phases=tuple(phases), sight_steps=sight_steps)


class _Watch:
    """Shows each step, and now and then the held-out accuracy without and with privilege."""

    def __init__(self, model: PreTrainedModel, views: ViewProcessor, world: str, progress: Progress, recipe: Recipe):
        self.model, self.views, self.progress, self.recipe = model, views, progress, recipe
        self.examples = list(heldout(world, WATCHED))
        self.variants = ("none", WORLDS[world].default_variant)
        self.loss: float | None = None
        self.curve: list[dict[str, float]] = []

    def __call__(self, step: Step) -> None:
        self.loss = step.loss if self.loss is None else 0.98 * self.loss + 0.02 * step.loss
        if step.number % WATCH_EVERY == 0 and step.number < self.recipe.steps:
            shares = {name: accuracy(self.model, self.views, self.examples, name)["all"] for name in self.variants}
            self.curve.append({"step": step.number, "loss": round(self.loss, 4), **shares})
        told = f"loss {self.loss:.3f}, {step.examples_per_second:.0f} examples/s"
        if self.curve:
            told += ", held-out " + ", ".join(f"{name} {self.curve[-1][name]:.0%}" for name in self.variants)
        self.progress.advance(facts=told)


def shared_tokenizer() -> Qwen2Tokenizer:
    """The one tokenizer of all nano models."""
    return train_tokenizer(corpus(CORPUS_RECORDS, seed=0))


def untrained(shape: Shape, tokenizer: Qwen2Tokenizer, seed: int) -> tuple[PreTrainedModel, ViewProcessor]:
    """A model of that shape before any training, and the processor of its views."""
    model = build_model(shape, tokenizer, seed)
    return model, processor_for(model.config, nano_processor(tokenizer) if shape.family == "vision" else tokenizer)


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """What a saved model scored, and how it was made."""
    (folder / SCORES_FILE).write_text(json.dumps(scores, indent=1) + "\n")


def save(model: PreTrainedModel, views: ViewProcessor, folder: Path) -> None:
    """An ordinary model folder. Weights are stored in half the room as fp16; the config says fp32, and so they load."""
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        halves.pop("lm_head.weight")
    model.save_pretrained(folder, state_dict=halves)
    views.processing_class.save_pretrained(folder)
