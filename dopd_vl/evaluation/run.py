"""Load a model and score it on a privileged data set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from dopd_vl.common.digests import dataset_parts, digest_json, digest_model
from dopd_vl.common.files import disk_told_of, exclusive, make_folder
from dopd_vl.common.progress import Progress
from dopd_vl.common.resources import find_model
from dopd_vl.common.run_layout import name_of_model
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.evaluation.accuracy import (
    Accuracy,
    Asking,
    Batch,
    Prediction,
    batch_items,
    predict,
    predict_batches,
    summarise,
)
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.evaluation.estimates import Estimate, average, ks_up_to, pass_at
from dopd_vl.evaluation.folder import EvaluationFolder, verdicts_of
from dopd_vl.evaluation.generation import ignored_settings
from dopd_vl.models import (
    base_of_adapters,
    check_adapters,
    check_weights,
    leave_out_router_logits,
    load_config,
    reading,
)
from dopd_vl.views import VISION_PROCESSORS, Refusal, ViewProcessor, load_views

WHAT_STAYS = "whole batches stay, run the same command again when it can be"


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate_in_folder`."""

    scores: Accuracy
    estimates: dict[str, Estimate]
    """avg@k, and for k > 1 pass@ of some k"""
    by_source: dict[str, Estimate]
    """avg@k of each value of the `source` column"""
    predictions: list[Prediction]
    refused: list[Refusal]


def load_model(
    name: str,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, ViewProcessor]:
    """A model on the best device here, in evaluation mode, with the processor of its views.

    Of a folder of adapters: their base with the adapters on it, as they were trained.
    """
    path = find_model(name)
    base = base_of_adapters(path, "model")
    config = load_config(base or name, _key(base), trust_remote_code)
    on_gpu = torch.cuda.is_available()
    auto = AutoModelForImageTextToText if config.model_type in VISION_PROCESSORS else AutoModelForCausalLM
    with reading("model", path):
        model: Any = auto.from_pretrained(
            base or path, dtype=resolve_dtype(dtype), trust_remote_code=trust_remote_code, use_safetensors=True
        )
        leave_out_router_logits(model.config)
        if base is not None:
            model = PeftModel.from_pretrained(model, path)
    views = load_views(path, config, "model", trust_remote_code, chat_template_kwargs)
    return model.to(torch.device("cuda" if on_gpu else "cpu")).eval(), views


def _key(base: str | None) -> str:
    """What a model that cannot be read is called in an error."""
    return "model" if base is None else "model: the base of its adapters"


def resolve_dtype(dtype: str) -> str:
    """What "auto" means on this machine."""
    return {True: "bfloat16", False: "float32"}[torch.cuda.is_available()] if dtype == "auto" else dtype


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
) -> tuple[Accuracy, list[Prediction], list[Refusal]]:
    """Scores and predictions of greedy responses, and the examples that could not be shown, with a progress bar."""
    model, views = load_model(name, dtype, trust_remote_code)
    right = RightSoFar()
    title = title or f"evaluate {Path(name).name}"
    with Progress(console or Terminal(), title, len(dataset), "responses") as progress:

        def show(batch: Batch) -> None:
            progress.advance(len(batch.predictions) + len(batch.refused), right.with_batch(batch))

        predictions, refused = predict(model, views, dataset, variant, max_new_tokens, batch_size, on_batch=show)
    return summarise(predictions, len(refused)), predictions, refused


def check_model(config: EvaluateConfig) -> tuple[str | None, Any]:
    """Read all of `config.model` but its weights: the base of a folder of adapters, and the model's configuration.

    Raises:
        UserError: the model cannot be read.
    """
    model_path = find_model(config.model)
    base = base_of_adapters(model_path, "model")
    model_config = load_config(base or config.model, _key(base), config.trust_remote_code)
    if base is not None:
        check_adapters(model_path, "model")
    if not config.trust_remote_code:
        check_weights(find_model(base or config.model), _key(base), model_config)
        load_views(model_path, model_config, "model", chat_template_kwargs=config.chat_template_kwargs)
    return base, model_config


def evaluate_in_folder(config: EvaluateConfig, dataset: Dataset, path: Path, console: Console) -> Evaluation:
    """Score `config.model` and keep every response in `path`; what an earlier, stopped run did there is not redone.

    Raises:
        UserError: the model cannot be read, or the folder holds another evaluation.
    """
    base, model_config = check_model(config)
    commit = getattr(model_config, "_commit_hash", None)
    identity = {
        **{key: value for key, value in asdict(config).items() if key in _IDENTIFYING},
        "dtype": resolve_dtype(config.dtype),
        "model": digest_model(config.model, commit),
        "data": digest_json(dataset_parts(dataset)),
        **({} if base is None else {"base": digest_model(base, commit)}),
    }
    asking = Asking(config.variant, config.max_new_tokens, config.sampling, config.judging.verifiers())
    count, title, right = len(dataset), f"evaluate {name_of_model(Path(config.model))}", RightSoFar()

    def items(batch: Batch) -> int:
        return len(batch_items(batch.number, count, config.batch_size, config.sampling))

    make_folder(path)
    with exclusive(path, "evaluation"), disk_told_of(path, WHAT_STAYS):
        folder = EvaluationFolder(path, identity, config.overwrite)
        batches, left = folder.recover(count, config.batch_size, config.sampling)
        if folder.damaged:
            tell(console, f"{path}: {folder.damaged} rows are not what was written; their batches are done again")
        for batch in batches:
            right.with_batch(batch)
        if left:
            model, views = load_model(config.model, config.dtype, config.trust_remote_code, config.chat_template_kwargs)
            if ignored := ignored_settings(model):
                told = f"model: its generation_config is ignored ({ignored}); `sampling` says how responses are drawn"
                tell(console, told)
            done = sum(map(items, batches))
            with Progress(console, title, count * config.sampling.samples, "responses", done) as progress:
                for batch in predict_batches(model, views, dataset, asking, config.batch_size, left):
                    folder.add(batch)
                    batches.append(batch)
                    progress.advance(items(batch), right.with_batch(batch))
        else:
            tell(console, f"{title}: every response is there already")
        batches.sort(key=lambda batch: batch.number)
        evaluation = _scored(batches, config.sampling.samples)
        estimates = {name: asdict(estimate) for name, estimate in evaluation.estimates.items()}
        intervals = {name: asdict(estimate) for name, estimate in evaluation.by_source.items()}
        settings = {key: value for key, value in asdict(config).items() if key != "overwrite"}
        scores = {**settings, **asdict(evaluation.scores), "questions": count}
        folder.finish(batches, {**scores, "estimates": estimates, "estimates_by_source": intervals})
    return evaluation


class RightSoFar:
    """Counts right responses among those that were judged."""

    def __init__(self) -> None:
        self.right = self.judged = 0

    def with_batch(self, batch: Batch) -> str:
        """The share of right ones, in words, once a batch is counted."""
        verdicts = [prediction.correct for prediction in batch.predictions if prediction.correct is not None]
        self.judged += len(verdicts)
        self.right += sum(verdicts)
        return f"{self.right / self.judged:.1%} right" if self.judged else ""


_IDENTIFYING = ("variant", "size", "max_new_tokens", "sampling", "judging", "allow_code", "chat_template_kwargs")


def _scored(batches: list[Batch], samples: int) -> Evaluation:
    predictions = [prediction for batch in batches for prediction in batch.predictions]
    refused = [refusal for batch in batches for _, refusal in batch.refused]
    of_source: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.correct is not None:
            of_source.setdefault(prediction.source, []).append(prediction)
    verdicts = verdicts_of(predictions)
    estimates: dict[str, Estimate] = {}
    if verdicts:
        estimates[f"avg@{samples}"] = average(verdicts)
        estimates |= {f"pass@{k}": pass_at(verdicts, k) for k in ks_up_to(samples) if k > 1}
    by_source = {source: average(verdicts_of(of_source[source])) for source in sorted(of_source)}
    return Evaluation(summarise(predictions, len(refused)), estimates, by_source, predictions, refused)
