"""Load a model and score it on a privileged data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from dopd_vl.evaluation.accuracy import Accuracy, Prediction, predict, summarise
from dopd_vl.resources import find_model
from dopd_vl.views import VISION_PROCESSORS, ViewProcessor, processor_for


@dataclass
class EvaluateConfig:
    """Score a model on a privileged data set by its tasks' verifiers."""

    model: str = "nano:vision-student"
    """folder, hub id or nano:NAME"""
    data: str = ""
    """folder of a privileged data set"""
    variant: str = "none"
    """what of the privileged input the model sees; a deployed student sees none"""
    size: int | None = None
    """how many examples, from the front; all by default"""
    batch_size: int = 32
    max_new_tokens: int = 512
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """"auto": bfloat16 on a GPU, float32 on a CPU"""
    output_dir: str = "runs/evaluate"
    """gets predictions.jsonl, refused.jsonl and scores.json"""
    trust_remote_code: bool = False
    allow_code: bool = False
    """run the programs that the model writes for tasks of code, with limits but without a security boundary"""


def load_model(
    name: str, dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ViewProcessor]:
    """A model on the best device here, in evaluation mode, with the processor of its views."""
    from dopd_vl.training.preflight import load_config

    config = load_config(name, "model", trust_remote_code)
    path = find_model(name)
    on_gpu = torch.cuda.is_available()
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu else "float32"
    auto = AutoModelForImageTextToText if config.model_type in VISION_PROCESSORS else AutoModelForCausalLM
    model: Any = auto.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
    processing_class = AutoProcessor.from_pretrained(path, padding_side="left", trust_remote_code=trust_remote_code)
    views = processor_for(config, processing_class)
    if views.tokenizer.pad_token is None:
        views.tokenizer.pad_token = views.tokenizer.eos_token
    return model.to(torch.device("cuda" if on_gpu else "cpu")).eval(), views


def evaluate_model(
    name: str,
    dataset: Dataset,
    variant: str = "none",
    max_new_tokens: int = 512,
    batch_size: int = 32,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    title: str | None = None,
    console: Console | None = None,
) -> tuple[Accuracy, list[Prediction], list[tuple[str, str]]]:
    """Scores, predictions, and (id, reason) of the examples that could not be shown, with a progress bar."""
    model, views = load_model(name, dtype, trust_remote_code)
    console = console or Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title or f"evaluate {Path(name).name}", total=len(dataset))
        predictions, refused = predict(
            model, views, dataset, variant, max_new_tokens, batch_size, lambda done: progress.advance(task, done)
        )
    return summarise(predictions, len(refused)), predictions, refused
