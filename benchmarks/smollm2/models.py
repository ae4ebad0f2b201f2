"""Make the pair of the pretrained world from SmolLM2-135M-Instruct, and score it.

The guide is that model, taught to work the two sources' questions out, a part of them with their hints. The learner is
the guide less its least influential layers, healed on the same text for a shorter time, more of it with hints: the
smaller model of one pretraining, that leans on hints more than it knows.
"""

import json
import math
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.nano.sft import Phase, Recipe, Row, Step, response_ids, train
from benchmarks.smollm2.data import PREPARED, RECORDS, example_script
from benchmarks.smollm2.layers import influences, keep_layers, most_influential
from benchmarks.smollm2.records import Record
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_json, read_jsonl, sync_folder, write_json
from dopd_vl.common.progress import Progress
from dopd_vl.common.quiet import quiet_libraries
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.evaluation.accuracy import generate
from dopd_vl.evaluation.verifiers import judge, verifier_for
from dopd_vl.models import end_token_ids
from dopd_vl.views import Request, View, ViewProcessor, processor_for
from privileged.dataset import load_privileged

MODELS = Path("runs/models")
BASE = "smollm2"
SCORES_FILE = "scores.json"
MAKING_FILE = "making.json"
MEASURED = 50
"""Rows that the layers' influence is measured on."""
SCORED = 50
"""Held-out records of each source."""
SCORE_BATCH = 25
LONGEST_RESPONSE = 64
SCORE_VARIANTS = {"held-out-math": ("none", "hints"), "held-out-sequence": ("none", "hints"), "arithmetic": ("none",)}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own template without its system message, which would be a third of a prompt."""


@dataclass(frozen=True)
class Making:
    """How one model of the pair is made from another."""

    origin: str
    recipe: Recipe
    hinted: float
    """share of the training prompts that show their hints"""
    layers: int | None = None
    """so many layers are kept; None: all"""
    frozen: int = 0
    """so many layers, from below, learn nothing, as the embeddings never do: their backward pass is saved"""


MAKING = {
    "smollm2-guide": Making(
        BASE, Recipe((Phase(150, 1200, {}),), batch=8, learning_rate=4e-4, warmup=10), hinted=0.4, frozen=10
    ),
    "smollm2-learner": Making(
        "smollm2-guide", Recipe((Phase(60, 480, {}),), batch=8, learning_rate=5e-4, warmup=8), hinted=0.6, layers=20
    ),
}


def make_models(seed: int = 0, steps: int | None = None, console: Console | None = None) -> dict[str, dict[str, Any]]:
    """Make and score the pair; what stands finished is left, so that a run that was stopped goes on.

    Args:
        seed: of the order of the records, and of which of them show their hints.
        steps: so many updates for each model, for a quick trial.

    Returns:
        the contents of each model's scores.json, the untuned one's too.

    Raises:
        UserError: the records are not there, or a model was made in another way.
    """
    console = console or Terminal()
    quiet_libraries()
    torch.set_num_threads(1)
    records = read_jsonl(RECORDS / "sft.jsonl")
    if not records:
        raise UserError(f"{RECORDS / 'sft.jsonl'}: not there; make it by python -m benchmarks.smollm2 data")
    if not (MODELS / BASE / "config.json").is_file():
        example_script("smollm2").main()
    made: dict[str, dict[str, Any]] = {BASE: {}}
    for name, making in MAKING.items():
        if steps is not None:
            (phase,) = making.recipe.phases
            making = replace(making, recipe=replace(making.recipe, phases=(replace(phase, steps=steps),)))
        made[name] = make_model(name, making, records, seed, console)
    return {name: score_model(name, facts, console) for name, facts in made.items()}


def make_model(name: str, making: Making, records: Sequence[Record], seed: int, console: Console) -> dict[str, Any]:
    """Make one model, unless it is there; returns what its folder says of its making.

    Raises:
        UserError: it was made in another way.
    """
    folder = MODELS / name
    wanted = {"seed": seed, "making": json.loads(json.dumps(asdict(making)))}
    if (found := read_json(folder / MAKING_FILE)) is not None:
        if {key: found.get(key) for key in wanted} != wanted:
            raise UserError(f"{folder}: was made in another way; remove it, and what was made from it, to make it anew")
        tell(console, f"{name}: is there")
        return found
    if folder.exists():
        raise UserError(f"{folder}: has no {MAKING_FILE}, so it was not made by this command; remove it")
    start = time.monotonic()
    model, views = load(MODELS / making.origin)
    rows = make_rows(records, views, making.hinted, seed)
    facts: dict[str, Any] = dict(wanted)
    if making.layers is not None:
        facts["influences"] = measured = measure_layers(model, views, rows)
        facts["layers"] = most_influential(measured, making.layers)
        keep_layers(model, facts["layers"])
        tell(console, f"{name}: of {len(measured)} layers those at {facts['layers']} stay")
    model.get_input_embeddings().requires_grad_(False)
    for layer in model.model.layers[: making.frozen]:
        layer.requires_grad_(False)
    losses: list[float] = []
    with Progress(console, name, making.recipe.steps, "steps") as progress:

        def on_step(step: Step) -> None:
            losses.append(step.loss)
            recent = losses[-20:]
            progress.advance(facts=f"loss {sum(recent) / len(recent):.3f}")

        train(model, views, making.recipe, [rows], seed, on_step)
    facts |= {"losses": [round(loss, 4) for loss in losses], "seconds": round(time.monotonic() - start)}
    unfinished = folder.with_name(f"{name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    views.processing_class.save_pretrained(unfinished)
    write_json(unfinished / MAKING_FILE, facts)
    sync_folder(unfinished)
    unfinished.rename(folder)
    return facts


def load(folder: Path) -> tuple[PreTrainedModel, ViewProcessor]:
    """A model in float32, and its views by SmolLM2's template without the system message."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, processor_for(model.config, tokenizer)


def make_rows(records: Sequence[Record], views: ViewProcessor, hinted: float, seed: int) -> list[Row]:
    """Each record once, with its hints or without, as drawn."""
    rng = random.Random(seed)
    requests = [Request(as_example(record), "hints" if rng.random() < hinted else "none") for record in records]
    rows: list[Row] = []
    for record, view in zip(records, views.view_all(requests), strict=True):
        if isinstance(view, ValueError):
            raise view
        rows.append((view, response_ids(record["response"], views)))
    return rows


def as_example(record: Record) -> Record:
    return {**record, "prompt": [{"role": "user", "content": record["prompt"]}], "images": []}


def measure_layers(model: PreTrainedModel, views: ViewProcessor, rows: Sequence[Row]) -> list[float]:
    """The influence of each layer on some of the rows, rounded."""
    batches = []
    for start in range(0, MEASURED, SCORE_BATCH):
        prompts, responses = zip(*rows[start : start + SCORE_BATCH], strict=True)
        batches.append(views.collate(prompts, responses, views.tokenizer.pad_token_id))
    return [round(influence, 5) for influence in influences(model, batches)]


def score_model(name: str, facts: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """The contents of a model's scores.json, measured unless it is there."""
    folder = MODELS / name
    if (found := read_json(folder / SCORES_FILE)) is not None:
        return found
    model, views = load(folder)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    questions = {
        (data, variant): list(load_privileged(PREPARED / data).select(range(SCORED)))
        for data, variants in SCORE_VARIANTS.items()
        for variant in variants
    }
    with Progress(console, f"{name}: scores", SCORED * len(questions), "responses") as progress:
        for (data, variant), examples in questions.items():
            scores.setdefault(data, {})[variant] = score(model, views, examples, variant, progress)
    said = {"model": name, "parameters": model.num_parameters(), "scores": scores, **facts}
    write_json(folder / SCORES_FILE, said)
    for data, shares in scores.items():
        told = ", ".join(f"{variant} {share['accuracy']:.0%}" for variant, share in shares.items())
        tell(console, f"{name}: {data}: {told}")
    return said


def score(
    model: PreTrainedModel,
    views: ViewProcessor,
    examples: Sequence[Mapping[str, Any]],
    variant: str,
    progress: Progress,
) -> dict[str, float]:
    """The estimate of a model's accuracy on these examples, which are shown in this variant."""
    verdicts = []
    for start in range(0, len(examples), SCORE_BATCH):
        some = examples[start : start + SCORE_BATCH]
        verdicts += answer(model, views, some, variant)
        progress.advance(len(some))
    right, ended = zip(*verdicts, strict=True)
    return estimate(right, ended)


def answer(
    model: PreTrainedModel, views: ViewProcessor, examples: Sequence[Mapping[str, Any]], variant: str
) -> list[tuple[bool, bool]]:
    """Of each greedy response: whether it is right, and whether it ended.

    Raises:
        UserError: an example cannot be shown.
    """
    shown: list[View] = []
    for view in views.view_all([Request(example, variant) for example in examples]):
        if isinstance(view, ValueError):
            raise view
        shown.append(view)
    ends = end_token_ids(model, views.tokenizer)
    verdicts = []
    for example, ids in zip(examples, generate(model, views, shown, LONGEST_RESPONSE), strict=True):
        text = str(views.tokenizer.decode(ids, skip_special_tokens=True))
        right = bool(judge(verifier_for(example["task"]), text, example["answer"]).right)
        verdicts.append((right, bool(ids) and ids[-1] in ends))
    return verdicts


def estimate(right: Sequence[bool], ended: Sequence[bool]) -> dict[str, float]:
    """The share of right responses with its standard error, of how many, and the share that ended.

    >>> estimate([True, True, True, False], [True, True, True, True])
    {'accuracy': 0.75, 'standard_error': 0.2165, 'n': 4, 'ended': 1.0}
    """
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / len(right))
    return {
        "accuracy": round(share, 4),
        "standard_error": round(error, 4),
        "n": len(right),
        "ended": round(sum(ended) / len(ended), 4),
    }
