"""A teacher that privileged input tempts: shown the answer, it says it and reasons no more.

    python -m benchmarks.nano shortcut --output runs/ladder

A large model does the like when the reference answer stands in its prompt. What it then shows a student cannot be
learned from the question alone: the student may copy the leap, but not land. The shipped text teacher is trained on for
a few steps, half of its prompts plain with whole responses, half with the final answer and a response cut down to it.
"""

import random
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.nano.build import save, write_scores
from benchmarks.nano.scoring import accuracy, heldout, load
from benchmarks.nano.sft import Phase, Recipe, Row, make_rows, train
from dopd_vl.common.progress import Progress
from dopd_vl.common.resources import model_folder
from dopd_vl.views import ViewProcessor

FOLDER = "text-shortcut"
STEPS, ROWS, BATCH = 120, 1_920, 32
SCORED = 200  # held-out records
MARK = "Answer:"


def build_shortcut_teacher(output: Path | str, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Train and save it below `output` as `text-shortcut`; returns the contents of its scores.json."""
    torch.set_num_threads(1)
    model, views = load(model_folder("text-teacher"))
    whole = make_rows(Phase(1, ROWS, {"none": 1.0}), "text", views, seed)
    short = make_rows(Phase(1, ROWS, {"final_answer": 1.0}), "text", views, seed + 1)
    rows = whole + [cut_to_answer(row, views) for row in short]
    random.Random(seed).shuffle(rows)
    recipe = Recipe((Phase(STEPS, len(rows), {}),), batch=BATCH, learning_rate=5e-4, warmup=10)
    with Progress(console or Console(), "shortcut teacher", STEPS, "steps") as progress:
        train(model, views, recipe, [rows], seed, on_step=lambda step: progress.advance(facts=f"loss {step.loss:.3f}"))
    folder = Path(output) / FOLDER
    save(model, views, folder)
    model.eval()
    examples = list(heldout("text", SCORED))
    scores = {name: accuracy(model, views, examples, name) for name in ("none", "final_answer")}
    facts = {"steps": STEPS, "seed": seed, "heldout": SCORED, "accuracy": scores}
    write_scores(folder, facts)
    return facts


def cut_to_answer(row: Row, views: ViewProcessor) -> Row:
    """The same prompt, answered at once: whatever the response says before its last "Answer:" is left out."""
    view, ids = row
    text = views.tokenizer.decode(ids[:-1])
    answer = text[text.rindex(MARK) :]
    return view, [*views.tokenizer(answer, add_special_tokens=False)["input_ids"], ids[-1]]
