"""Accuracy by the tasks' verifiers: responses to the questions of a privileged data set, and their entropy."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from dopd_vl.core import Projection, score_tokens
from dopd_vl.evaluation.calibration import calibration_error
from dopd_vl.evaluation.generation import PresencePenalty, bare_policy, seeded
from dopd_vl.evaluation.sampling import GREEDY, Sampling
from dopd_vl.evaluation.verifiers import VERIFIERS, Verifier, judge, unscored_tasks, verifier_for
from dopd_vl.models import (
    autocast_dtype,
    backbone_of,
    end_token_ids,
    forget_image_positions,
    image_token_ids,
    to_device,
)
from dopd_vl.views import Refusal, Request, View, ViewProcessor


@dataclass(frozen=True)
class Prediction:
    """One scored response."""

    id: str
    source: str
    response: str
    answer: str
    correct: bool | None
    """None: its task is not scored"""
    tokens: int
    clipped: bool
    """the response reached the length limit without an end-of-turn token"""
    entropy: float
    """mean over its tokens of the model's entropy, nats"""
    confidence: float
    """probability of the whole response, its end token included, under the model at temperature 1"""
    index: int = 0
    """position of its question in the data"""
    sample: int = 0
    """which of the responses to its question, from 0"""
    undecided: str = ""
    """why its verifier came to no verdict, where it counts as wrong for that alone"""
    task: str = ""
    """whose verifier judges it"""


@dataclass(frozen=True)
class Asking:
    """How questions are put and responses judged."""

    variant: str = "none"
    """what of the privileged input the model sees"""
    max_new_tokens: int = 512
    sampling: Sampling = GREEDY
    verifiers: Mapping[str, Verifier] = field(default_factory=lambda: VERIFIERS)


class Batch(NamedTuple):
    """What became of one batch of questions, each with the numbers of its responses."""

    number: int
    """from 0; the last batch may be short"""
    predictions: list[Prediction]
    refused: list[tuple[int, Refusal]]
    """with the position of the example; a question is refused once, with its first response"""


@dataclass(frozen=True)
class Accuracy:
    """Scores of a set of predictions; see `summarise`. What there was nothing to measure by is None."""

    accuracy: float | None
    """share of correct responses among those with a verdict, 0 to 1"""
    entropy: float | None
    """mean over responses of their mean token entropy, nats"""
    mean_tokens: float | None
    clipped: float | None
    by_source: dict[str, float]
    """accuracy of each value of the `source` column"""
    count: int
    refused: int
    """examples that could not be shown to the model; they count as neither right nor wrong"""
    calibration_error: float | None
    """expected calibration error, 0 to 1; see `dopd_vl.evaluation.calibration`"""
    unscored: int = 0
    """responses without a verdict; they count as neither right nor wrong"""
    undecided: int = 0
    """responses that a verifier failed on or did not come to an end with; they count as wrong"""


def summarise(predictions: Sequence[Prediction], refused: int = 0) -> Accuracy:
    """Averages over predictions."""

    def mean(values: Sequence[float]) -> float | None:
        return sum(values) / len(values) if values else None

    judged = [p for p in predictions if p.correct is not None]
    verdicts: dict[str, list[bool]] = {}
    for prediction in judged:
        verdicts.setdefault(prediction.source, []).append(bool(prediction.correct))
    return Accuracy(
        accuracy=mean([bool(p.correct) for p in judged]),
        entropy=mean([p.entropy for p in predictions]),
        mean_tokens=mean([p.tokens for p in predictions]),
        clipped=mean([p.clipped for p in predictions]),
        by_source={source: sum(some) / len(some) for source, some in sorted(verdicts.items())},
        count=len(predictions),
        refused=refused,
        calibration_error=calibration_error([(p.confidence, bool(p.correct)) for p in judged]) if judged else None,
        unscored=len(predictions) - len(judged),
        undecided=sum(bool(p.undecided) for p in predictions),
    )


def why_unscored(predictions: Sequence[Prediction], refused: Sequence[Refusal]) -> str:
    """Of a set in which no response has a verdict: why not, in one line."""
    if predictions:
        reasons = unscored_tasks()
        tasks = sorted({prediction.task for prediction in predictions})
        told = [f"task {task!r}: {reasons[task]}" if task in reasons else f"task {task!r}" for task in tasks]
        return f"none of {len(predictions)} responses has a verdict ({'; '.join(told)})"
    if not refused:
        return "there are no examples"
    return f"none of {len(refused)} examples can be shown to the model; {refused[0].id}: {refused[0].reason}"


def predict(
    model: PreTrainedModel,
    views: ViewProcessor,
    examples: Sequence[Mapping[str, Any]],
    variant: str = "none",
    max_new_tokens: int = 512,
    batch_size: int = 32,
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> tuple[list[Prediction], list[Refusal]]:
    """Greedy responses of `model`, in the order of `examples`, and the examples it could not be shown.

    Args:
        examples: rows of a privileged data set, read one at a time.
        variant: what of the privileged input the model sees.
        on_batch: called with each batch when it is done.
    """
    predictions: list[Prediction] = []
    refused: list[Refusal] = []
    for batch in predict_batches(model, views, examples, Asking(variant, max_new_tokens), batch_size):
        predictions += batch.predictions
        refused += [refusal for _, refusal in batch.refused]
        on_batch(batch)
    return predictions, refused


def batch_items(number: int, count: int, batch_size: int, sampling: Sampling) -> list[tuple[int, int]]:
    """(position of the question, number of the response) of each response in a batch; empty beyond the last batch.

    >>> batch_items(1, count=3, batch_size=4, sampling=Sampling(samples=2, temperature=1.0))
    [(2, 0), (2, 1)]
    """
    places = range(number * batch_size, min((number + 1) * batch_size, count * sampling.samples))
    return [divmod(place, sampling.samples) for place in places]


def count_batches(count: int, batch_size: int, sampling: Sampling) -> int:
    return -(-count * sampling.samples // batch_size)


def predict_batches(
    model: PreTrainedModel,
    views: ViewProcessor,
    examples: Sequence[Mapping[str, Any]],
    asking: Asking,
    batch_size: int,
    numbers: Iterable[int] | None = None,
) -> Iterator[Batch]:
    """Responses batch by batch. A batch is the same whether or not others are drawn before it.

    Args:
        numbers: which batches; all by default.
    """
    was_training = model.training
    model.eval()
    try:
        for number in range(count_batches(len(examples), batch_size, asking.sampling)) if numbers is None else numbers:
            items = batch_items(number, len(examples), batch_size, asking.sampling)
            with seeded(model.device, asking.sampling.seed, *items[0]):
                batch = _predict_batch(model, views, examples, asking, number, items)
            yield batch
    finally:
        model.train(was_training)


def _predict_batch(
    model: PreTrainedModel,
    views: ViewProcessor,
    examples: Sequence[Mapping[str, Any]],
    asking: Asking,
    number: int,
    items: list[tuple[int, int]],
) -> Batch:
    questions = {index: examples[index] for index, _ in items}
    rendered = views.view_all([Request(example, asking.variant) for example in questions.values()])
    view_of = dict(zip(questions, rendered, strict=True))
    refused = [
        (index, Refusal(str(questions[index]["id"]), str(view)))
        for index, sample in items
        if sample == 0 and isinstance(view := view_of[index], ValueError)
    ]
    shown = [(index, sample, view) for index, sample in items if isinstance(view := view_of[index], View)]
    if not shown:
        return Batch(number, [], refused)
    prompts = [view for _, _, view in shown]
    end_ids = end_token_ids(model, views.tokenizer)
    responses = generate(model, views, prompts, asking.max_new_tokens, asking.sampling)
    entropies, log_probs = _score_responses(model, views, prompts, responses, _pad_id(views))
    predictions = []
    for (index, sample, _), ids, entropy, log_prob in zip(shown, responses, entropies, log_probs, strict=True):
        example = questions[index]
        text = str(views.tokenizer.decode(ids, skip_special_tokens=True))
        verdict = judge(verifier_for(example["task"], asking.verifiers), text, example["answer"])
        predictions.append(
            Prediction(
                id=str(example["id"]),
                source=str(example.get("source") or ""),
                response=text,
                answer=example["answer"],
                correct=verdict.right,
                tokens=len(ids),
                clipped=not ids or ids[-1] not in end_ids,
                entropy=entropy,
                confidence=math.exp(log_prob),
                index=index,
                sample=sample,
                undecided=verdict.undecided,
                task=example["task"],
            )
        )
    return Batch(number, predictions, refused)


@torch.no_grad()
def generate(
    model: PreTrainedModel, views: ViewProcessor, prompts: list[View], max_new_tokens: int, sampling: Sampling = GREEDY
) -> list[list[int]]:
    """One response a prompt, as token ids up to and including the end token.

    Of the model's own generation_config nothing counts but its end tokens.
    """
    pad_id, end_ids = _pad_id(views), end_token_ids(model, views.tokenizer)
    inputs = to_device(views.collate(prompts, [[] for _ in prompts], pad_id), model.device)
    prompt_length = inputs["input_ids"].shape[1]
    processors = LogitsProcessorList()
    if sampling.presence_penalty:
        processors.append(PresencePenalty(sampling.presence_penalty, prompt_length))
    forget_image_positions(model)
    run: Any = model.generate
    with bare_policy(model):
        generated = run(
            **inputs,
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id,
                eos_token_id=end_ids,
                suppress_tokens=image_token_ids(model.config) or None,
                remove_invalid_values=True,  # a model that diverged is scored, as everything else is
                **sampling.generation_settings(),
            ),
            logits_processor=processors,
            synced_gpus=False,  # ranks answer questions of their own, and not equally many
        )
    return [cut_at_end(row, end_ids) for row in generated[:, prompt_length:].tolist()]


def _pad_id(views: ViewProcessor) -> int:
    tokenizer = views.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


@torch.no_grad()
def _score_responses(
    model: PreTrainedModel, views: ViewProcessor, shown: list[View], responses: list[list[int]], pad_id: int
) -> tuple[list[float], list[float]]:
    """Of each response: the mean of its tokens' entropies, and its log-probability, nats."""
    length = max(len(ids) for ids in responses)
    if length == 0:
        return [0.0] * len(responses), [0.0] * len(responses)
    inputs = to_device(views.collate(shown, responses, pad_id), model.device)
    hidden = backbone_of(model)(**inputs, use_cache=False).last_hidden_state[:, -length - 1 : -1]
    head = model.get_output_embeddings()
    response_ids = inputs["input_ids"][:, -length:]
    mask = inputs["attention_mask"][:, -length:].bool()
    head_of = Projection(hidden, head.weight, head.bias, autocast_dtype(hidden.device))
    scores = score_tokens(head_of, response_ids, mask, top_k=1)
    entropies = scores.entropy.sum(-1) / mask.sum(-1).clamp(min=1)
    return entropies.tolist(), scores.logp.sum(-1).tolist()


def cut_at_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    for position, token in enumerate(ids):
        if token in end_ids:
            return ids[: position + 1]
    return ids
