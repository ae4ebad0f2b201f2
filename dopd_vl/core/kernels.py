"""The passes of `dopd_vl.core.passes` as Triton kernels; of the same names, arguments and results.

Logits and sums are fp32. A program goes through a row; sums are kept lane by lane and joined at the row's end, so that
no lane waits for another while the row is read.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR, DivergenceName
from dopd_vl.core.mass import LEAST, Mass

BLOCK = 4096
"""Entries of a row that a program reads at once"""
WARPS = 8
NUMBERS: dict[DivergenceName, int] = {"reverse_kl": 0, "forward_kl": 1, "js": 2}


@triton.jit
def _at_least(x, bound):
    """A NaN stays one."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _js_slope(further):
    """`log s - log m` of `log t - log s`: log 2 - softplus."""
    return 0.6931471805599453 - (_at_least(further, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(further))))


@triton.jit
def _at_most(x, bound):
    """A NaN stays one."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _entry(s, t, p, q, alive, NAME: tl.constexpr):
    """One entry of a divergence, and what its gradient needs of the target: as `passes._clipped`, before the clip."""
    further = t - s
    if NAME == 0:
        left = -further
        entries = p * left
    elif NAME == 1:
        left = tl.where(alive, q, 0.0)
        entries = q * further
    else:
        left = _js_slope(further)
        entries = 0.5 * (q * (further + left) + p * left)
    return entries, left


@triton.jit
def _mass(
    logits, row_stride, vocabulary, largest, total, weighted,
    LOWEST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    offsets = tl.arange(0, BLOCK)
    # Each lane's largest logit so far, its mass relative to that, and the mass times the distance from it.
    top = tl.full([BLOCK], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    product = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        z = tl.load(logits + start + offsets, mask=start + offsets < vocabulary, other=float("-inf"))
        grows = z > top
        distance = tl.where(grows, top - z, z - top)
        fade = tl.exp(distance)
        distance = _at_least(distance, LEAST)
        product = tl.where(grows, (product + distance * mass) * fade, product + distance * fade)
        mass = tl.where(grows, mass * fade + 1.0, mass + fade)
        top = tl.where(grows, z, top)
    highest = tl.max(top, axis=0)
    distance = top - highest
    fade = tl.exp(distance)
    tl.store(largest + row, highest)
    tl.store(total + row, tl.sum(mass * fade, axis=0))
    tl.store(weighted + row, tl.sum((product + _at_least(distance, LEAST) * mass) * fade, axis=0))


@triton.jit
def _softmax_gradient(logits, row_stride, vocabulary, log_z, factor, out, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < vocabulary
    z = tl.load(logits + row * row_stride + offsets, mask=inside, other=float("-inf"))
    gradient = tl.exp(z - tl.load(log_z + row)) * tl.load(factor + row)
    tl.store(out + row * out_stride + offsets, gradient.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dense_divergence(
    logits, row_stride, log_z, target_logits, target_stride, target_log_z, vocabulary, value, factor, out, out_stride,
    clip,
    NAME: tl.constexpr, GRADIENT: tl.constexpr, CLIPS: tl.constexpr, FLOOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target_logits += row * target_stride
    s_z, t_z = tl.load(log_z + row), tl.load(target_log_z + row)
    offsets = tl.arange(0, BLOCK)
    # Sums over the student's mass, over the target's, and of the target's mass where the student has any.
    of_student = tl.zeros([BLOCK], tl.float32)
    of_target = tl.zeros([BLOCK], tl.float32)
    kept = tl.zeros([BLOCK], tl.float32)
    # Of clipped entries, the value.
    of_entries = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        inside = start + offsets < vocabulary
        s = tl.load(logits + start + offsets, mask=inside, other=float("-inf")) - s_z
        t = tl.load(target_logits + start + offsets, mask=inside, other=float("-inf")) - t_z
        p, q = tl.where(inside, tl.exp(_at_least(s, FLOOR)), 0.0), tl.exp(t)
        alive = s > FLOOR
        s, t = _at_least(s, FLOOR), _at_least(t, FLOOR)
        if CLIPS:
            q = tl.where(inside, q, 0.0)
            entries, left = _entry(s, t, p, q, alive, NAME)
            left = tl.where(entries > clip, -1.0 if NAME == 0 else 0.0, left)
            of_entries += _at_most(entries, clip)
            if NAME == 1:
                kept += left
            else:
                of_student += p * left
        elif NAME == 0:
            of_student += p * (s - t)
        elif NAME == 1:
            of_target += q * (t - s)
            kept += tl.where(alive, q, 0.0)
        else:
            further = t - s
            slope = _js_slope(further)
            of_student += p * slope
            of_target += tl.where(inside, tl.exp(t), 0.0) * (further + slope)
    centre = tl.sum(of_student, axis=0)
    if CLIPS:
        tl.store(value + row, tl.sum(of_entries, axis=0))
    elif NAME == 0:
        tl.store(value + row, centre)
    elif NAME == 1:
        tl.store(value + row, tl.sum(of_target, axis=0))
    else:
        tl.store(value + row, 0.5 * (tl.sum(of_target, axis=0) + centre))
    if GRADIENT:
        out += row * out_stride
        mass = tl.sum(kept, axis=0)
        scale = tl.load(factor + row)
        for start in range(0, vocabulary, BLOCK):
            inside = start + offsets < vocabulary
            s = tl.load(logits + start + offsets, mask=inside, other=float("-inf")) - s_z
            t = tl.load(target_logits + start + offsets, mask=inside, other=float("-inf")) - t_z
            alive = s > FLOOR
            s = _at_least(s, FLOOR)
            p = tl.exp(s)
            if CLIPS:
                q = tl.exp(t)
                entries, left = _entry(s, _at_least(t, FLOOR), p, q, alive, NAME)
                left = tl.where(entries > clip, -1.0 if NAME == 0 else 0.0, left)
                if NAME == 1:
                    gradient = (p * mass - left) * scale
                elif NAME == 0:
                    gradient = p * (left - centre) * scale
                else:
                    gradient = p * (left - centre) * 0.5 * scale
            elif NAME == 1:
                gradient = (p * mass - tl.where(alive, tl.exp(t), 0.0)) * scale
            elif NAME == 0:
                gradient = p * (s - _at_least(t, FLOOR) - centre) * scale
            else:
                further = _at_least(t, FLOOR) - s
                slope = _js_slope(further)
                gradient = p * (slope - centre) * 0.5 * scale
            tl.store(out + start + offsets, gradient.to(out.dtype.element_ty), mask=inside)


def mass_of(logits: Tensor) -> Mass:
    rows, vocabulary = logits.shape
    mass = Mass(*(logits.new_empty(rows, 1) for _ in range(3)))
    _mass[(rows,)](
        logits, logits.stride(0), vocabulary, *mass, torch.finfo(torch.float32).min, LEAST, BLOCK, num_warps=WARPS
    )
    return mass


def softmax_gradient(logits: Tensor, log_z: Tensor, factor: Tensor, out: Tensor) -> None:
    rows, vocabulary = logits.shape
    grid = (rows, triton.cdiv(vocabulary, BLOCK))
    _softmax_gradient[grid](
        logits, logits.stride(0), vocabulary, log_z, factor, out, out.stride(0), BLOCK, num_warps=WARPS
    )


def dense_divergence(
    name: DivergenceName,
    logits: Tensor,
    log_z: Tensor,
    target_logits: Tensor,
    target_log_z: Tensor,
    factor: Tensor | None = None,
    out: Tensor | None = None,
    entry_clip: float = math.inf,
) -> Tensor:
    rows, vocabulary = logits.shape
    value = torch.empty_like(log_z)
    _dense_divergence[(rows,)](
        logits, logits.stride(0), log_z, target_logits, target_logits.stride(0), target_log_z, vocabulary, value,
        value if factor is None else factor, value if out is None else out, 0 if out is None else out.stride(0),
        entry_clip, NUMBERS[name], out is not None, entry_clip < math.inf, LOG_PROB_FLOOR, BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return value
