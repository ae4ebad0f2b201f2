"""A teacher of another sharpness: the same answers, its logits divided by a temperature.

    python -m benchmarks.nano soften --model nano:text-teacher --temperature 2 --output runs/ladder/text-teacher-soft

Logits are the head times the last norm's output, so a norm whose weight is divided divides them, and the folder is an
ordinary model.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_NAME

from benchmarks.nano.build import save
from benchmarks.nano.scoring import load
from dopd_vl.common.errors import UserError
from dopd_vl.common.resources import find_model


@torch.no_grad()
def soften(model: str, temperature: float, output: Path | str) -> None:
    """Save a nano model whose logits are those of `model` divided by `temperature` (below 1: sharper).

    Raises:
        UserError: the temperature is not above 0, or there is no such model.
    """
    if not temperature > 0.0:
        raise UserError(f"temperature {temperature} must be above 0")
    folder = Path(find_model(model))
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{folder} is no model: it has no {CONFIG_NAME}")
    softened, views = load(folder)
    body: Any = softened.model
    norm = getattr(body, "language_model", body).norm
    norm.weight.div_(temperature)
    save(softened, views, Path(output))
