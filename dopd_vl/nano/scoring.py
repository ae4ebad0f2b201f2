"""How often a nano model answers right, decoded greedily."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from dopd_vl.views import ViewProcessor

MAX_RESPONSE = 64


@torch.no_grad()
def respond(
    model: PreTrainedModel, views: ViewProcessor, examples: Sequence[dict[str, Any]], variant: str, batch: int = 64
) -> list[str]:
    """Each example's greedy response when shown in a variant."""
    was_training = model.training
    model.eval()
    shown = [views.view(example, variant) for example in examples]
    order = sorted(range(len(shown)), key=lambda row: len(shown[row].prompt_ids))
    responses = [""] * len(shown)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = views.collate([shown[row] for row in rows], [[]] * len(rows), views.tokenizer.pad_token_id)
        ids = model.generate(**inputs, max_new_tokens=MAX_RESPONSE, do_sample=False)
        texts = views.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            responses[row] = text
    model.train(was_training)
    return responses


def accuracy(
    model: PreTrainedModel, views: ViewProcessor, examples: Sequence[dict[str, Any]], variant: str
) -> dict[str, float]:
    """The share of right answers: "all", then each task kind by name."""
    right: dict[str, list[bool]] = defaultdict(list)
    for example, response in zip(examples, respond(model, views, examples, variant), strict=True):
        verdict = is_right(response, example)
        right["all"].append(verdict)
        right[example["source"].partition("/")[2]].append(verdict)
    return {name: sum(verdicts) / len(verdicts) for name, verdicts in right.items()}


def is_right(response: str, example: dict[str, Any]) -> bool:
    return response.partition("Answer:")[2].strip() == example["answer"]
