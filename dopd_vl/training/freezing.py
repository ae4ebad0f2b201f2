"""Parts of a vision-language student that do not learn: tower, projector or language model.

A frozen weight has no gradient and no place in the optimizer, and stays what it was to the last bit.
"""

import re
from collections.abc import Collection
from copy import copy
from typing import Any

import torch
from peft import PeftConfig

from dopd_vl.common.errors import UserError
from dopd_vl.train_config import PARTS, check_freeze

_WITHIN = {
    "vision": r"(?:.*\.)?visual\.(?!(?:merger|deepstack_merger_list)\.).*",
    "projector": r"(?:.*\.)?visual\.(?:merger|deepstack_merger_list)\..*",
    "language": r"(?!(?:.*\.)?visual\.).*",
}
"""Part -> the names of its modules and weights, as Qwen3-VL and Qwen3.5 have them, adapters and wrappers about them."""


def part_of(name: str) -> str:
    """The part that a module or a weight of that name belongs to.

    >>> part_of("model.visual.merger.norm.weight"), part_of("lm_head.weight")
    ('projector', 'language')
    """
    return next(part for part in PARTS if re.fullmatch(_WITHIN[part], name))


def freeze(model: torch.nn.Module, parts: Collection[str]) -> None:
    """Let nothing of these parts learn.

    Raises:
        UserError: the model lacks one of them, or nothing is left that learns.
    """
    if not parts:
        return
    check_freeze(parts)
    weights = [(part_of(name), weight) for name, weight in model.named_parameters()]
    for part in parts:
        if part not in {own for own, _ in weights}:
            raise UserError(f"model.freeze: the student reads text only, and has no {part} part")
    for part, weight in weights:
        if part in parts:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for _, weight in weights):
        raise UserError(f"model.freeze: of {', '.join(parts)} alone there is nothing that learns; leave it out")


def keep_adapters_out(config: PeftConfig, parts: Collection[str]) -> PeftConfig:
    """The same adapters, but for those in these parts.

    Raises:
        UserError: adapters of this kind go where they go.
    """
    if not parts:
        return config
    if not hasattr(config, "exclude_modules"):
        raise UserError(f"model.freeze: {type(config).__name__} cannot leave parts of a model out")
    patterns = [_WITHIN[part] for part in PARTS if part in parts]
    other: Any = copy(config)
    given = other.exclude_modules or ()
    if isinstance(given, str):
        patterns.append(given)
    else:
        patterns += [rf"(?:.*\.)?{re.escape(name)}" for name in sorted(given)]
    other.exclude_modules = "|".join(f"(?:{pattern})" for pattern in patterns)
    return other


def learns_from_text(model: torch.nn.Module) -> bool:
    """Whether a prompt without images leads to anything that learns."""
    return any(weight.requires_grad for name, weight in model.named_parameters() if part_of(name) == "language")
