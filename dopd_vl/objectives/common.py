"""What several objectives share: their usual sources, ratios of sampled tokens, and checks of settings."""

import math
from collections.abc import Collection
from typing import Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from dopd_vl.core import Source
from dopd_vl.core.divergences import LOG_PROB_FLOOR
from dopd_vl.objectives.base import Scores

PLAIN_TEACHER = Source("teacher", "plain")
PLAIN_STUDENT = Source("student", "plain")
PRIVILEGED_TEACHER = Source("teacher", "privileged")
PRIVILEGED_STUDENT = Source("student", "privileged")


def log_ratio(scores: Scores, numerator: Source, denominator: Source) -> Tensor:
    """`log numerator(y_n) - log denominator(y_n)` of the sampled tokens, `[B, N]` nats, zero where masked.

    Log-probabilities are floored first, so that a token which a policy finds impossible has a finite ratio.
    """
    above, below = (scores.policies[source].logp.clamp(min=LOG_PROB_FLOOR) for source in (numerator, denominator))
    return above - below


def mean_of(values: Tensor, where: Tensor) -> float:
    """Mean of `values` over the true entries of `where`, of the same shape; 0 for none."""
    chosen = values[where]
    return chosen.float().mean().item() if chosen.numel() else 0.0


def count_of(share: float, size: int) -> int:
    """How many of `size` tokens a share of them is: rounded up, at least one."""
    # 0.1 * 30 is a little above 3 in floating point.
    return max(1, math.ceil(share * size - 1e-9))


def check_choices(settings: object) -> None:
    """Raises: ValueError: a setting whose type lists its values (a `Literal`) has another value."""
    for name, annotation in get_type_hints(type(settings)).items():
        if get_origin(annotation) is Literal:
            check_choice(name, getattr(settings, name), get_args(annotation))


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raises: ValueError: the setting `name` is none of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}, expected one of {', '.join(allowed)}")


def check_view(name: str, value: object) -> None:
    """Raises: ValueError: the setting `name` is not the name of a view."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}={value!r} must be the name of a view: plain, privileged, or a variant's")


def check_at_least_one(name: str, value: int) -> None:
    """Raises: ValueError: the setting `name` is below 1."""
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")


def check_not_negative(name: str, value: float) -> None:
    """Raises: ValueError: the setting `name` is negative, infinite or NaN."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name}={value} must be a finite number, not negative")


def check_share(name: str, value: float) -> None:
    """Raises: ValueError: the setting `name` is not above 0 and at most 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name}={value} must be above 0 and at most 1")
