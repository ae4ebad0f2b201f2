"""Train the nano families from nothing and save them as Hugging Face folders with their measured scores."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, Qwen2Tokenizer

from dopd_vl.nano.models import SHAPES, build_model
from dopd_vl.nano.progress import Progress
from dopd_vl.nano.scoring import accuracy, heldout, load, score
from dopd_vl.nano.sft import MIXTURES, Recipe, Step, make_rows, train
from dopd_vl.nano.source import WORLDS, NanoSource
from dopd_vl.nano.tokenizer import corpus, nano_processor, train_tokenizer
from dopd_vl.views import ViewProcessor, processor_for

FAMILIES = ("vision", "text")
RECIPES: dict[str, Recipe] = {
    "vision-teacher": Recipe(steps=3000),
    "vision-student": Recipe(steps=1200),
    "text-teacher": Recipe(steps=3000),
    "text-student": Recipe(steps=1200),
}
CORPUS_RECORDS = 600  # of each world, for the tokenizer
SCORED = 600  # held-out records for scores.json
WATCHED = 120  # held-out records for the accuracy shown while training
WATCH_EVERY = 500  # steps


def build(
    output: Path | str,
    family: str = "all",
    seed: int = 0,
    steps: int | None = None,
    rows: int | None = None,
    scored: int = SCORED,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Train and save `vision-teacher`, `vision-student`, `text-teacher`, `text-student` below `output`.

    Args:
        family: "vision", "text" or "all".
        seed: of the weights, the records and their order; the tokenizer is the same for every seed.
        steps, rows: override every recipe, for a quick trial.
        scored: held-out records that the final scores are measured on.

    Returns:
        the contents of each model's scores.json, by model name.
    """
    if family not in (*FAMILIES, "all"):
        raise ValueError(f"family {family!r}: use one of vision, text, all")
    console = console or Console()
    overrides = {key: value for key, value in {"steps": steps, "rows": rows}.items() if value is not None}
    command = f"dopd-vl nano build --output DIR --family {family} --seed {seed}"
    command += "".join(f" --{key} {value}" for key, value in overrides.items())
    torch.set_num_threads(1)  # models this small lose more to the threads' coordination than they gain
    tokenizer = train_tokenizer(corpus(CORPUS_RECORDS, seed=0))
    scores = {}
    for world in FAMILIES if family == "all" else (family,):
        scores |= _build_family(Path(output), world, tokenizer, seed, overrides, scored, command, console)
    return scores


def _build_family(
    output: Path,
    world: str,
    tokenizer: Qwen2Tokenizer,
    seed: int,
    overrides: dict[str, int],
    scored: int,
    command: str,
    console: Console,
) -> dict[str, dict[str, Any]]:
    scores = {}
    made: dict[int, Any] = {}  # teacher and student share their rows where their number is the same
    for name in (name for name, shape in SHAPES.items() if shape.family == world):
        start = time.monotonic()
        recipe = replace(RECIPES[name], **overrides)
        model = build_model(name, tokenizer, seed)
        processing_class = nano_processor(tokenizer) if world == "vision" else tokenizer
        views = processor_for(model.config, processing_class)
        if recipe.rows not in made:
            source = NanoSource({"world": world, "size": recipe.rows, "seed": seed})
            with Progress(console, f"{world} rows", recipe.rows, "rows") as progress:
                made[recipe.rows] = make_rows(source, views, MIXTURES[world], seed, on_row=progress.advance)
        with Progress(console, name, recipe.steps, "steps") as progress:
            watch = _Watch(model, views, world, progress, recipe)
            train(model, made[recipe.rows], views, recipe, seed, on_step=watch)
        save(model, processing_class, output / name)
        reloaded, views = load(output / name)
        measured = score(reloaded, views, world, scored)
        scores[name] = {
            "model": name,
            "parameters": model.num_parameters(),
            "accuracy": measured,
            "heldout": {"size": scored, "seed": 0},
            "seed": seed,
            "command": command,
            "recipe": asdict(recipe),
            "curve": watch.curve,
            "seconds": round(time.monotonic() - start),
        }
        (output / name / "scores.json").write_text(json.dumps(scores[name], indent=1) + "\n")
        shown = ", ".join(f"{variant} {shares['all']:.1%}" for variant, shares in measured.items())
        console.print(f"{name}: {shown} -> {output / name}", highlight=False)
    return scores


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
        self.progress.advance(told)


def save(model: PreTrainedModel, processing_class: Any, folder: Path) -> None:
    """An ordinary model folder. Weights are stored in half the room as fp16; the config says fp32, and so they load."""
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        halves.pop("lm_head.weight")
    model.save_pretrained(folder, state_dict=halves)
    processing_class.save_pretrained(folder)
