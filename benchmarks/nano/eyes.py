"""Sight before language: the vision tower learns to see digits before the language model is taught to talk about them.

As vision-language models are made: an encoder is trained on images first and joined to the language model after. Here
each merged patch of a scene is one cell, and its feature is taught to lie nearest to the embedding of the token that
names its digit, or the empty cell. A language model that starts from such features has only to read them.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Qwen3VLProcessor

from dopd_vl.nano.digits import Split
from dopd_vl.nano.scenes import EMPTY, GRID, compose

CELLS = GRID * GRID
SHARPNESS = 10.0
"""Scale of the similarities: features must not grow far beyond the embeddings' own length to be told apart."""


def name_cells(
    model: PreTrainedModel,
    processor: Qwen3VLProcessor,
    steps: int,
    seed: int,
    batch: int = 64,
    learning_rate: float = 3e-3,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the vision tower in place on scenes of train digits; the language model and its embeddings stay."""
    names = cell_names(model, processor)
    tower = model.model.visual
    optimizer = torch.optim.AdamW(tower.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = 0.1 if steps != 10 else 0.11  # the schedule divides by warmup * steps - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=warmup)
    rng = random.Random(f"eyes/{seed}")
    tower.train()
    for step in range(1, steps + 1):
        pixels, grid, labels = scenes(processor, "train", rng, batch)
        loss = cross_entropy(similarities(tower, pixels, grid, names), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step, loss.item())


def cell_names(model: PreTrainedModel, processor: Qwen3VLProcessor) -> Tensor:
    """Embeddings of the tokens "0" to "9" and of the token that stands for an empty cell, `[11, H]`, constant."""
    ids = processor.tokenizer.convert_tokens_to_ids([*"0123456789", EMPTY])
    weight: Any = model.get_input_embeddings().weight
    return weight[ids].detach().clone()


def similarities(tower: torch.nn.Module, pixels: Tensor, grid: Tensor, names: Tensor) -> Tensor:
    """Logits `[cells, 11]` of every cell's feature against the names."""
    features = tower(pixels, grid_thw=grid).pooler_output
    scale = SHARPNESS / names.norm(dim=-1).pow(2).mean()
    return scale * features @ names.T


def scenes(processor: Qwen3VLProcessor, split: Split, rng: random.Random, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, grids and the label of every cell (10: empty) of `count` scenes, in the order of the merged patches."""
    images, labels = [], []
    for _ in range(count):
        shown = {cell: rng.randrange(10) for cell in range(CELLS) if rng.random() < 0.7}
        images.append(compose(shown, split, rng).image)
        labels += [shown.get(cell, 10) for cell in range(CELLS)]
    encoded = processor.image_processor(images=images, do_resize=False, return_tensors="pt")
    return encoded["pixel_values"], encoded["image_grid_thw"], torch.tensor(labels)
