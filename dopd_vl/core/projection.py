"""Policies as hidden states and output heads, scored chunk by chunk: no `[tokens, vocabulary]` beyond one chunk.

Only response tokens are projected. What one sweep over a policy leaves is a few numbers and the K likeliest tokens a
position, 8 K + 20 bytes in fp32: enough to route, to log, and to supervise by a Top-K or sampled divergence without
projecting that policy again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR, DivergenceName, divergence, log_softmax, without_autocast

DEFAULT_CHUNK_SIZE = 256
"""Response tokens projected at a time: at a vocabulary of 151,936, 256 rows of fp32 logits take 0.16 GB."""

_BLOCK = 2**18  # logits that a CPU's elementwise work looks at together, so that they stay in its caches
TOP_K_BLOCK = 64
_NOTHING = 2 * LOG_PROB_FLOOR
"""Nats below the largest logit at which a token has no mass, while 0 log 0 stays a number."""


class Projection(NamedTuple):
    """Hidden states and the head that turns them into logits: `hidden[B, N, H] @ weight[V, H].T + bias[V]`.

    Whether autocast is on where it is used makes no difference.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    dtype: torch.dtype | None = None
    """what hidden states and head are rounded to for their product, e.g. bfloat16 for fp32 weights trained in mixed
    precision; default: the head's own. The products are summed in fp32 at least, and what comes of them stays there."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the product's two factors."""
        return self.weight.dtype if self.dtype is None else self.dtype

    def constant(self) -> "Projection":
        """The same without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Projection(self.hidden.detach(), self.weight.detach(), bias, self.dtype)


class Projector:
    """A projection as the products of one sweep use it: the head is cast once, not once a chunk."""

    def __init__(self, projection: Projection):
        self.projection = projection
        self.dtype = projection.compute_dtype

    @cached_property
    def weight(self) -> Tensor:
        """`[V, H]`, a factor of `product`"""
        return as_factor(self.projection.weight, self.dtype)

    def rows(self, rows: Any) -> Tensor:
        """Hidden states of the chosen rows, `[R, H]`, a factor of `product`."""
        return as_factor(self.projection.hidden[rows], self.dtype)

    def logits(self, rows: Any) -> Tensor:
        """Logits of the chosen rows, `[R, V]`, in fp32 at least."""
        logits, bias = product(self.rows(rows), self.weight.T), self.projection.bias
        return logits if bias is None else logits.add_(bias)


def wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def as_factor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor of `product`, rounded to `dtype`. Off a GPU the rounded numbers stand in fp32."""
    rounded = tensor.to(dtype)
    return rounded if rounded.is_cuda else rounded.to(wide(dtype))


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` of two factors, summed in fp32 at least and left so: logits of 20 nats, rounded to bf16, would be off by
    up to 0.06. Only a GPU multiplies half-precision numbers into fp32 sums at once; elsewhere fp32 does the same."""
    return torch.mm(a, b) if a.dtype == wide(a.dtype) else torch.mm(a, b, out_dtype=wide(a.dtype))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b` of two factors, without a tensor of the product's size."""
    if a.dtype == wide(a.dtype):
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=wide(a.dtype), out=total)


@dataclass(frozen=True)
class TokenScores:
    """One policy at every response token; no gradient. B sequences, N tokens, K kept entries.

    Where masked, `logp`, `entropy`, `log_z` and ids are zero and the log-probabilities of sets of tokens -inf.
    """

    logp: Tensor
    """`[B, N]`, log-probability of the sampled token, nats"""
    rest_logp: Tensor
    """`[B, N]`, log of the mass of all other tokens"""
    entropy: Tensor
    """`[B, N]`, of the whole distribution, nats"""
    log_z: Tensor
    """`[B, N]`, logsumexp of the logits"""
    top_k_ids: Tensor
    """`[B, N, K]` int32, likeliest first"""
    top_k_logp: Tensor
    """`[B, N, K]`"""
    tail_logp: Tensor
    """`[B, N]`, log of the mass outside those K, -inf for none"""

    def map(self, change: Any) -> "TokenScores":
        """The same with `change(tensor)` in place of every tensor, e.g. to slice or to move them."""
        return TokenScores(*(change(getattr(self, field.name)) for field in fields(self)))


@torch.no_grad()
def score_tokens(
    projection: Projection,
    response_ids: Tensor,
    response_mask: Tensor,
    top_k: int,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    store: torch.device | str | None = None,
) -> TokenScores:
    """Score one policy in one sweep: each chunk of response tokens is projected once.

    Args:
        projection: hidden states `[B, N, H]` aligned so that position n predicts response token n, and the head.
        response_ids: `[B, N]` int64.
        response_mask: `[B, N]`, true where there is a response token; masked positions may hold anything.
        top_k: entries kept a position, at most the whole vocabulary.
        store: where the K entries a token are kept, by far the largest part, e.g. "cpu" to keep them off the
            accelerator; default: where the hidden states are.
    """
    mask = response_mask.bool()
    hidden = projection.hidden
    dtype = wide(hidden.dtype)
    top_k = min(top_k, projection.weight.shape[0])

    def filled(value: float, *size: int, dtype: torch.dtype = dtype) -> Tensor:
        device = hidden.device if not size or store is None else torch.device(store)
        return torch.full((*mask.shape, *size), value, dtype=dtype, device=device)

    kept = TokenScores(
        logp=filled(0.0),
        rest_logp=filled(-torch.inf),
        entropy=filled(0.0),
        log_z=filled(0.0),
        top_k_ids=filled(0, top_k, dtype=torch.int32),
        top_k_logp=filled(-torch.inf, top_k),
        tail_logp=filled(-torch.inf),
    )
    with without_autocast(hidden):
        policy = Projector(projection)
        for rows in chunks(mask, chunk_size):
            found = score_logits(policy.logits(rows), response_ids[rows], top_k)
            for field in fields(kept):
                whole = getattr(kept, field.name)
                there = tuple(index.to(whole.device) for index in rows)
                whole[there] = getattr(found, field.name).to(device=whole.device, dtype=whole.dtype)
    return kept


def score_logits(logits: Tensor, ids: Tensor, top_k: int) -> TokenScores:
    """Scores `[R]` of rows of logits `[R, V]`, which may be overwritten.

    The mass of a tail is summed over the tail itself: one minus the mass of the head would have no digits left where
    the policy is sure.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values, top_ids = top_k_of(logits, top_k)
    largest = values[:, :1]
    sampled = ids.unsqueeze(-1)
    head = values - largest
    own = logits.gather(-1, sampled) - largest
    is_own = top_ids == sampled
    outside = ~is_own.any(-1, keepdim=True)  # the sampled token is none of the K
    # What is left is the mass of tokens that are neither sampled nor among the K.
    nothing = largest + _NOTHING
    logits.scatter_(-1, top_ids, nothing.expand_as(top_ids)).scatter_(-1, sampled, nothing)
    left, weighted = mass_of(logits, largest)
    head_mass, own_mass = head.exp(), own.exp()
    own_outside = own_mass * outside
    tail = left + own_outside
    total = tail + head_mass.sum(-1, keepdim=True)
    rest = left + (head_mass * ~is_own).sum(-1, keepdim=True)
    weighted += own.clamp(min=_NOTHING) * own_outside
    weighted += (head.clamp(min=_NOTHING) * head_mass).sum(-1, keepdim=True)
    log_total = total.log()
    exhausted = top_k >= logits.shape[-1]
    tail_logp = torch.full_like(tail, -torch.inf) if exhausted else tail.log() - log_total
    return TokenScores(
        logp=(own - log_total).squeeze(-1),
        rest_logp=(rest.log() - log_total).squeeze(-1),
        entropy=(log_total - weighted / total).squeeze(-1),
        log_z=(largest + log_total).squeeze(-1),
        top_k_ids=top_ids,
        top_k_logp=head - log_total,
        tail_logp=tail_logp.squeeze(-1),
    )


def mass_of(logits: Tensor, largest: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
    """`m_v = exp(logits - largest)` summed, and `m_v (logits - largest)` summed, `[R, 1]` each, of logits `[R, V]`.

    With `keep` the logits are overwritten by m. On a CPU the work goes block by block of the vocabulary.
    """
    total, weighted = torch.zeros_like(largest), torch.zeros_like(largest)
    on_cpu = logits.device.type == "cpu"
    for block in logits.split(max(1, _BLOCK // len(logits)) if on_cpu else logits.shape[-1], dim=-1):
        shifted = (block - largest).clamp_(min=_NOTHING)
        mass = torch.exp(shifted, out=block) if keep else shifted.exp()
        total += mass.sum(-1, keepdim=True)
        weighted += torch.linalg.vecdot(mass, shifted).unsqueeze(-1)
    return total, weighted


def top_k_of(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """`logits[R, V].topk(K)`: values and ids `[R, K]`, likeliest first.

    For a large vocabulary in two stages: the K largest entries lie in the K blocks of largest maximum. Which of several
    equal entries at the K-th place is kept is not defined.
    """
    vocabulary = logits.shape[-1]
    whole = vocabulary // TOP_K_BLOCK * TOP_K_BLOCK
    if whole < 8 * top_k * TOP_K_BLOCK:
        values, ids = logits.topk(top_k, dim=-1)
        return values, ids
    blocks = logits[:, :whole].unflatten(-1, (-1, TOP_K_BLOCK))
    best = blocks.amax(-1).topk(top_k, dim=-1).indices
    candidates = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, TOP_K_BLOCK)).flatten(1)
    candidates = torch.cat([candidates, logits[:, whole:]], dim=-1)
    offsets = torch.arange(TOP_K_BLOCK, device=logits.device)
    ids = (best.unsqueeze(-1) * TOP_K_BLOCK + offsets).flatten(1)
    beyond = torch.arange(whole, vocabulary, device=logits.device).expand(len(logits), -1)
    values, places = candidates.topk(top_k, dim=-1)
    return values, torch.cat([ids, beyond], dim=-1).gather(-1, places)


@torch.no_grad()
def divergence_of(
    name: DivergenceName,
    student: Projection,
    target: Projection,
    response_mask: Tensor,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> Tensor:
    """A full-vocabulary divergence of one policy from another at every response token, `[B, N]`, no gradient."""
    mask = response_mask.bool()
    dtype = wide(student.hidden.dtype)
    values = torch.zeros(mask.shape, dtype=dtype, device=student.hidden.device)
    with without_autocast(student.hidden):
        policies = Projector(student), Projector(target)
        for rows in chunks(mask, chunk_size):
            student_logp, target_logp = (log_softmax(policy.logits(rows)) for policy in policies)
            values[rows] = divergence(name, student_logp, target_logp).to(dtype)
    return values


def chunks(mask: Tensor, chunk_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Indices of the true entries of `mask`, `chunk_size` at a time."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    indices = mask.nonzero(as_tuple=True)
    if len(indices[0]):
        yield from zip(*(index.split(chunk_size) for index in indices), strict=True)
