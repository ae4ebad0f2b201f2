"""The work on logits, elementwise over `[rows, vocabulary]`: each pass with its plain form, and its kernel on a GPU.

At a vocabulary of 151,936, 1,024 rows of fp32 logits take 0.6 GB, and what a pass costs on a GPU is the number of times
that it goes through them. A *trip* is one tensor of `rows * vocabulary` elements read or written once, whatever its
dtype. The matrix products make trips of their own, which no elementwise work can save: each policy's logits are written
once, the gradient in the student's is read twice.

                                       elementwise                                             products
    scoring a policy                   2: the blocks' largest, the mass outside the Top-K      1
    learning, one sparse term          3: the mass outside its support; the gradient           3
    learning, one term of full support 7: two masses; two reads for the value; the gradient    4

With fused kernels, that is: on a GPU where Triton, which comes with torch's CUDA builds, can be imported, unless
DOPD_VL_KERNELS=0 is in the environment. If a kernel cannot be built or started, that is said once, and the plain forms
go on. On a CPU these go block by block of the vocabulary, through the caches.
"""

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR, DivergenceName
from dopd_vl.core.mass import Mass, dot

SWITCH = "DOPD_VL_KERNELS"
TOP_K_BLOCK = 64
_BLOCK = 2**18  # logits that a CPU's elementwise work looks at together, so that they stay in its caches

P = ParamSpec("P")
R = TypeVar("R")
_failed = False


def kernels() -> ModuleType | None:
    """`dopd_vl.core.kernels`; None where it is turned off or has failed."""
    if _failed or os.environ.get(SWITCH, "1") == "0":
        return None
    from dopd_vl.core import kernels

    return kernels


def takes_kernels(logits: Tensor) -> bool:
    """Whether these logits are such as the kernels are for."""
    return logits.is_cuda and logits.dtype == torch.float32 and logits.numel() > 0


def with_kernel(plain: Callable[P, R]) -> Callable[P, R]:
    """The pass of the same name in `dopd_vl.core.kernels` where it can work on the first tensor."""

    @functools.wraps(plain)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        global _failed
        tensor = next(arg for arg in args if isinstance(arg, Tensor))
        if takes_kernels(tensor):
            try:
                module = kernels()
                if module is not None:
                    with torch.cuda.device_of(tensor):
                        result: R = getattr(module, plain.__name__)(*args, **kwargs)
                    return result
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # Nothing has been written yet: a kernel is built before it starts.
                _failed = True
                first = str(error).strip().split("\n")[0]
                message = f"the loss goes on without its fused kernels, more slowly: {type(error).__name__}: {first}"
                warnings.warn(f"{message} ({SWITCH}=0 turns them off)", RuntimeWarning, stacklevel=2)
        return plain(*args, **kwargs)

    return chosen


@with_kernel
def mass_of(logits: Tensor) -> Mass:
    """The mass of all entries of logits `[R, V]`, in one reading."""
    lowest = logits.new_full((len(logits), 1), torch.finfo(logits.dtype).min)
    mass = Mass(lowest, torch.zeros_like(lowest), torch.zeros_like(lowest))
    for (block,) in _blocks(logits):
        mass = mass.including(block)
    return mass


@with_kernel
def softmax_gradient(logits: Tensor, log_z: Tensor, factor: Tensor, out: Tensor) -> None:
    """`exp(logits - log_z) * factor` into `out[R, V]`, which may be the logits; these may be overwritten.

    Args:
        log_z, factor: `[R, 1]`.
    """
    for block, there in _blocks(logits, out):
        _into(there, block.sub_(log_z).exp_().mul_(factor))


@with_kernel
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
    """A divergence over the whole vocabulary, `[R, 1]`, from logits `[R, V]` of the student and of its target.

    Args:
        log_z, target_log_z: `[R, 1]`, logsumexp of the logits.
        factor: `[R, 1]`, of the gradient.
        out: `[R, V]`, for the gradient in the student's logits; may be these. Both logits may be overwritten.
        entry_clip: what one entry counts for at most.
    """
    value, kept, centre = (torch.zeros_like(log_z) for _ in range(3))
    clips = entry_clip < math.inf
    for s_block, t_block in _blocks(logits, target_logits):
        s = s_block.sub_(log_z).clamp_(min=LOG_PROB_FLOOR)
        t = t_block.sub_(target_log_z)
        # What the gradient needs of the target beyond sums is left in its place.
        if clips:
            entries, left = _clipped(name, s, t, entry_clip)
            value += entries.sum(-1, keepdim=True)
            kept += left.sum(-1, keepdim=True)
            centre += dot(s.exp(), t.copy_(left))
            continue
        if name == "forward_kl":
            q = t.exp()
            value += dot(q, t.clamp_(min=LOG_PROB_FLOOR).sub_(s))
            kept += torch.mul(q, s > LOG_PROB_FLOOR, out=t).sum(-1, keepdim=True)
            continue
        t.clamp_(min=LOG_PROB_FLOOR)
        if name == "reverse_kl":
            centre += dot(s.exp(), torch.sub(s, t, out=t))
            continue
        # log s - log m = log 2 - softplus(log t - log s), and log t - log m is that plus (log t - log s).
        q = t.exp()
        further = t.sub_(s)
        slope = math.log(2.0) - torch.nn.functional.softplus(further)
        value += dot(q, further.add_(slope))
        t.copy_(slope)
        centre += dot(s.exp(), slope)
    if out is not None:
        assert factor is not None
        for s, t, there in _blocks(logits, target_logits, out):
            p = s.exp_()
            if name == "forward_kl":
                _into(there, p.mul_(kept).sub_(t).mul_(factor))
            else:
                _into(there, t.sub_(centre).mul_(p).mul_(factor if name == "reverse_kl" else 0.5 * factor))
    if name == "forward_kl" or clips:
        return value
    return centre if name == "reverse_kl" else 0.5 * (value + centre)


def _clipped(name: DivergenceName, s: Tensor, t: Tensor, entry_clip: float) -> tuple[Tensor, Tensor]:
    """The entries of a divergence, none above the clip, and what its gradient needs of the target: t itself with a
    forward KL, else the slope, which a clipped entry has none of."""
    q, alive = t.exp(), s > LOG_PROB_FLOOR
    further = t.clamp(min=LOG_PROB_FLOOR) - s
    if name == "forward_kl":
        entries, left = q * further, q * alive
    elif name == "reverse_kl":
        entries, left = -s.exp() * further, -further
    else:
        left = math.log(2.0) - torch.nn.functional.softplus(further)
        entries = 0.5 * (q * (further + left) + s.exp() * left)
    above = entries > entry_clip
    return entries.clamp_(max=entry_clip), left.masked_fill_(above, -1.0 if name == "reverse_kl" else 0.0)


def top_k_of(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """`logits[R, V].topk(K)`: values and ids `[R, K]`, likeliest first.

    For a large vocabulary in two stages: the K largest entries lie in the K blocks of largest maximum, which take one
    reading. Which of several equal entries at the K-th place is kept is not defined.
    """
    vocabulary = logits.shape[-1]
    whole = vocabulary // TOP_K_BLOCK * TOP_K_BLOCK
    if whole < 8 * top_k * TOP_K_BLOCK:
        values, ids = logits.topk(top_k, dim=-1)
        return values, ids
    blocks = logits[:, :whole].unflatten(-1, (-1, TOP_K_BLOCK))
    best = blocks.amax(-1).topk(top_k, dim=-1).indices
    candidates = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, TOP_K_BLOCK)).flatten(1)
    inside = candidates.shape[-1]
    if whole < vocabulary:
        candidates = torch.cat([candidates, logits[:, whole:]], dim=-1)
    values, places = candidates.topk(top_k, dim=-1)
    of_block = best.gather(-1, (places // TOP_K_BLOCK).clamp(max=top_k - 1))
    ids = torch.where(places < inside, of_block * TOP_K_BLOCK + places % TOP_K_BLOCK, places - inside + whole)
    return values, ids


def mass_outside(logits: Tensor, ids: Tensor) -> Mass:
    """The mass of all entries but some, `ids[R, K]`, whose logits become -inf.

    It is summed itself: one minus the mass of those K would have no digits left where the policy is sure.
    """
    return mass_of(logits.scatter_(-1, ids, -torch.inf))


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors `[R, V]`, small enough for a CPU's caches."""
    rows, vocabulary = tensors[0].shape
    size = max(1, _BLOCK // max(1, rows)) if tensors[0].device.type == "cpu" else max(1, vocabulary)
    yield from zip(*(tensor.split(size, dim=-1) for tensor in tensors), strict=True)


def _into(there: Tensor, values: Tensor) -> None:
    if there.data_ptr() != values.data_ptr():
        there.copy_(values)
