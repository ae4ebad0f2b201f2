"""Accuracy by the tasks' verifiers: greedy generation over a privileged data set, with the entropy of what was said."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from dopd_vl.core import Projection, score_tokens
from dopd_vl.evaluation.verifiers import verifier_for
from dopd_vl.views import Request, View, ViewProcessor


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


@dataclass(frozen=True)
class Accuracy:
    """Scores of a set of predictions; see `summarise`."""

    accuracy: float
    """share of correct responses among those with a verdict, 0 to 1"""
    entropy: float
    """mean over responses of their mean token entropy, nats"""
    mean_tokens: float
    clipped: float
    by_source: dict[str, float]
    """accuracy of each value of the `source` column"""
    count: int
    refused: int
    """examples that could not be shown to the model; they count as neither right nor wrong"""
    unscored: int = 0
    """responses without a verdict; they count as neither right nor wrong"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(predictions: Sequence[Prediction], refused: int = 0) -> Accuracy:
    """Averages over predictions; zeros where there are none."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    judged = [p for p in predictions if p.correct is not None]
    sources = sorted({p.source for p in judged})
    return Accuracy(
        accuracy=mean([bool(p.correct) for p in judged]),
        entropy=mean([p.entropy for p in predictions]),
        mean_tokens=mean([p.tokens for p in predictions]),
        clipped=mean([p.clipped for p in predictions]),
        by_source={source: mean([bool(p.correct) for p in judged if p.source == source]) for source in sources},
        count=len(predictions),
        refused=refused,
        unscored=len(predictions) - len(judged),
    )


def predict(
    model: PreTrainedModel,
    views: ViewProcessor,
    examples: Sequence[Mapping[str, Any]],
    variant: str = "none",
    max_new_tokens: int = 512,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """Greedy responses of `model`, in the order of `examples`, and (id, reason) of the examples it could not be shown.

    Args:
        examples: rows of a privileged data set, read one at a time.
        variant: what of the privileged input the model sees.
        on_batch: called with the number of examples done since the last call.
    """
    predictions: list[Prediction] = []
    refused: list[tuple[str, str]] = []
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(examples, batch_size):
            shown: list[tuple[Mapping[str, Any], View]] = []
            rendered = views.view_all([Request(example, variant) for example in batch])
            for example, view in zip(batch, rendered, strict=True):
                if isinstance(view, ValueError):
                    refused.append((str(example["id"]), str(view)))
                else:
                    shown.append((example, view))
            if shown:
                predictions += _predict_batch(model, views, shown, max_new_tokens)
            if on_batch is not None:
                on_batch(len(batch))
    finally:
        model.train(was_training)
    return predictions, refused


@torch.no_grad()
def _predict_batch(
    model: PreTrainedModel, views: ViewProcessor, shown: list[tuple[Mapping[str, Any], View]], max_new_tokens: int
) -> list[Prediction]:
    tokenizer = views.tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    end_ids = end_token_ids(model, tokenizer)
    inputs = to_device(views.collate([view for _, view in shown], [[] for _ in shown], pad_id), model.device)
    forget_image_positions(model)
    generate: Any = model.generate
    generated = generate(
        **inputs,
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad_id,
            eos_token_id=end_ids,
            suppress_tokens=image_token_ids(model.config) or None,
        ),
    )
    responses = [cut_at_end(row, end_ids) for row in generated[:, inputs["input_ids"].shape[1] :].tolist()]
    entropies = _response_entropies(model, views, [view for _, view in shown], responses, pad_id)
    predictions = []
    for (example, _), ids, entropy in zip(shown, responses, entropies, strict=True):
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        predictions.append(
            Prediction(
                id=str(example["id"]),
                source=str(example.get("source") or ""),
                response=text,
                answer=example["answer"],
                correct=verifier_for(example["task"])(text, example["answer"]),
                tokens=len(ids),
                clipped=not ids or ids[-1] not in end_ids,
                entropy=entropy,
            )
        )
    return predictions


def _response_entropies(
    model: PreTrainedModel, views: ViewProcessor, shown: list[View], responses: list[list[int]], pad_id: int
) -> list[float]:
    length = max(len(ids) for ids in responses)
    if length == 0:
        return [0.0] * len(responses)
    inputs = to_device(views.collate(shown, responses, pad_id), model.device)
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, -length - 1 : -1]
    head = model.get_output_embeddings()
    response_ids = inputs["input_ids"][:, -length:]
    mask = inputs["attention_mask"][:, -length:].bool()
    scores = score_tokens(Projection(hidden, head.weight, head.bias), response_ids, mask, top_k=1)
    return (scores.entropy.sum(-1) / mask.sum(-1).clamp(min=1)).tolist()


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Every token that ends a response: the model's own list and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))


def image_token_ids(config: Any) -> list[int]:
    """Placeholder and marker tokens of images and videos, which a response must not hold; empty for a text model."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return [getattr(config, name) for name in names if isinstance(getattr(config, name, None), int)]


def forget_image_positions(model: PreTrainedModel) -> None:
    """Clear the mRoPE offsets that a Qwen-VL model keeps from its last batch: a text-only batch would reuse them."""
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None  # type: ignore[assignment]


def cut_at_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    for position, token in enumerate(ids):
        if token in end_ids:
            return ids[: position + 1]
    return ids


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _batches(examples: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    for start in range(0, len(examples), size):
        yield [examples[i] for i in range(start, min(start + size, len(examples)))]
