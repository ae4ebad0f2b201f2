"""Divergences with their gradients in the student's logits, in closed form; checked against autograd of the plain ones.

Shape suffixes: R rows (response tokens), V vocabulary entries, K entries of a support. Everything in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR, DivergenceName
from dopd_vl.core.plan import TermTail

_LARGEST_EXPONENT = 80.0  # exp of more overflows fp32


class Support(NamedTuple):
    """Some vocabulary entries of each row and the mass of the others, under one policy."""

    logp: Tensor
    """`[R, K]`, -inf for an entry that does not count (a repeated one)"""
    tail_logp: Tensor
    """`[R]`, log of the mass of all entries outside"""


class SparseResult(NamedTuple):
    """A divergence over a support, and its gradient in the logits: `there` on the support, `outside * s_v` off it."""

    value: Tensor
    """`[R]`"""
    outside: Tensor
    """`[R]`, factor of the student's probabilities"""
    there: Tensor
    """`[R, K]`"""


def sparse_divergence(
    name: DivergenceName, tail: TermTail, student: Support, target: Support, entry_clip: float = math.inf
) -> SparseResult:
    """A divergence of Top-K or sampled support, `coarsen`ed by `tail`, and its gradient."""
    s, t = student.logp, target.logp
    if tail == "bucket":
        s = torch.cat([s, student.tail_logp.unsqueeze(-1)], dim=-1)
        t = torch.cat([t, target.tail_logp.unsqueeze(-1)], dim=-1)
    if tail == "renormalize":
        s = s - s.logsumexp(-1, keepdim=True).clamp(min=LOG_PROB_FLOOR)
    if tail in ("renormalize", "renormalize_target"):
        t = t - t.logsumexp(-1, keepdim=True).clamp(min=LOG_PROB_FLOOR)
    p, q = s.exp(), t.exp()
    s_floor, t_floor = s.clamp(min=LOG_PROB_FLOOR), t.clamp(min=LOG_PROB_FLOOR)
    fixed_mass = tail in ("bucket", "renormalize")
    # slope is dD/ds_v at every entry, up to a constant where the student's mass is fixed; pull is s_v times that.
    if name == "reverse_kl":
        slope = s_floor - t_floor
        entries = p * slope
        clipped_slope = 0.0
        if tail == "corrected":
            entries = entries - p + q
        elif fixed_mass:  # less the 1 of the others: it cancels, and its rounding would not
            clipped_slope = -1.0
        else:  # the kept mass is not fixed: more of it costs more
            slope = slope + 1.0
        pull = p * slope
    elif name == "forward_kl":
        entries = q * (t_floor - s_floor)
        alive = s >= LOG_PROB_FLOOR
        pull = -q * alive
        slope = -(t - s_floor).clamp(max=_LARGEST_EXPONENT).exp() * alive
        clipped_slope = 0.0
        if tail == "corrected":
            entries = entries - q + p
            pull, slope = pull + p, slope + 1.0
    else:
        mixture = torch.logaddexp(s_floor, t_floor) - math.log(2.0)
        slope = 0.5 * (s_floor - mixture)
        pull = p * slope
        entries = 0.5 * q * (t_floor - mixture) + pull
        clipped_slope = 0.0
    if entry_clip < math.inf:
        above = entries > entry_clip
        entries = entries.clamp(max=entry_clip)
        slope, pull = slope.masked_fill(above, clipped_slope), torch.where(above, clipped_slope * p, pull)
    total = pull.sum(-1)
    there = pull - p * total.unsqueeze(-1)
    if tail == "renormalize":
        return SparseResult(entries.sum(-1), torch.zeros_like(total), there)
    if tail == "bucket":
        return SparseResult(entries.sum(-1), slope[:, -1] - total, there[:, :-1])
    return SparseResult(entries.sum(-1), -total, there)
