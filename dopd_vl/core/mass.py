"""The mass of some entries of a distribution over the vocabulary, from logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR

LEAST = 2 * LOG_PROB_FLOOR
"""Nats; what lies further below the largest logit has no mass, while 0 log 0 stays a number."""


class Mass(NamedTuple):
    """Of some entries of each row: `m_v = exp(logit_v - largest)` summed, and `m_v (logit_v - largest)` summed."""

    largest: Tensor
    """`[R, 1]`, the lowest finite number where all entries are -inf"""
    total: Tensor
    """`[R, 1]`"""
    weighted: Tensor
    """`[R, 1]`"""

    def log(self) -> Tensor:
        """logsumexp of the entries, `[R, 1]`; -inf where none has mass."""
        return self.largest + self.total.log()

    def entropy(self) -> Tensor:
        """Of the distribution over the entries, `[R, 1]`, nats."""
        return self.total.log() - self.weighted / self.total

    def faded(self, largest: Tensor) -> "Mass":
        """The same relative to a larger number."""
        fade = (self.largest - largest).clamp(min=LEAST)
        factor = fade.exp()
        return Mass(largest, self.total * factor, (self.weighted + fade * self.total) * factor)

    def including(self, logits: Tensor) -> "Mass":
        """With some entries `[R, K]` more; -inf for one that does not count."""
        largest = torch.maximum(self.largest, logits.amax(-1, keepdim=True))
        total, weighted = _summed(logits - largest)
        faded = self.faded(largest)
        return Mass(largest, faded.total + total, faded.weighted + weighted)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products, `[R, V] x [R, V] -> [R, 1]`."""
    products: Tensor = torch.linalg.vecdot(a, b)
    return products.unsqueeze(-1)


def _summed(shifted: Tensor) -> tuple[Tensor, Tensor]:
    mass = shifted.exp()
    return mass.sum(-1, keepdim=True), dot(mass, shifted.clamp_(min=LEAST))
