"""What several objectives share: their usual sources, ratios of sampled tokens, and checks of settings."""

import math
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
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


def over_the_kept(kept: Tensor, among: Tensor) -> Tensor:
    """Weights, of the shape of `kept`, by which a mean over all `among` becomes one over the kept; zero elsewhere."""
    count = kept.sum()
    return kept.float() * (among.sum() / count if count > 0 else 0.0)


def z_scored_by_group(values: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Values less their mean over their standard deviation, among the unmasked ones of each group.

    The standard deviation is the unbiased one and at least 1e-6; a value alone in its group becomes zero.

    Args:
        values, mask: `[B, ...]`, zero where masked.
        group: `[B]`.
    """
    scored = torch.zeros_like(values)
    for number in group.unique():
        members = mask & (group == number).reshape(-1, *[1] * (values.dim() - 1))
        among = values[members]
        if len(among) > 1:
            scored[members] = (among - among.mean()) / among.std().clamp(min=1e-6)
    return scored


class Bound(NamedTuple):
    """What a setting's value must be beside its type; it stands in the type itself."""

    holds: Callable[[Any], bool]
    """false for NaN"""
    said: str
    """how the message ends"""


_A_VIEW = "the name of a view: plain, privileged, or a variant's"
AtLeastOne = Annotated[int, Bound(lambda value: value >= 1, "at least 1")]
NotNegative = Annotated[float, Bound(lambda value: 0.0 <= value < math.inf, "a finite number, not negative")]
Positive = Annotated[float, Bound(lambda value: value > 0.0, "above 0")]
Share = Annotated[float, Bound(lambda value: 0.0 < value <= 1.0, "above 0 and at most 1")]
OpenShare = Annotated[float, Bound(lambda value: 0.0 < value < 1.0, "above 0 and below 1")]
ShareLeftOut = Annotated[float, Bound(lambda value: 0.0 <= value < 1.0, "at least 0 and below 1")]
Percentile = Annotated[float, Bound(lambda value: 0.0 < value <= 100.0, "above 0 and at most 100")]
VariantName = Annotated[str, Bound(lambda value: isinstance(value, str) and value != "", "the name of a variant")]
ViewName = Annotated[str, Bound(lambda value: isinstance(value, str) and value != "", _A_VIEW)]


class CheckedSettings:
    """A dataclass whose fields are held to their types' bounds as soon as it is made.

    Raises:
        ValueError: a setting is out of its `Bound`, or none of the values that its type lists (a `Literal`).
    """

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            if get_origin(annotation) is Literal:
                check_choice(name, getattr(self, name), get_args(annotation))
            elif get_origin(annotation) is Annotated:
                value, (_, bound) = getattr(self, name), get_args(annotation)
                if not bound.holds(value):
                    raise ValueError(f"{name}={value!r} must be {bound.said}")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raises: ValueError: the setting `name` is none of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}, expected one of {', '.join(allowed)}")
