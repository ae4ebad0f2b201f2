"""Policies as hidden states and output heads, scored chunk by chunk: no `[tokens, vocabulary]` beyond one chunk.

Only response tokens are projected. What one sweep over a policy leaves is a few numbers and the K likeliest tokens a
position, 8 K + 20 bytes in fp32: enough to route, to log, and to supervise by a Top-K or sampled divergence without
projecting that policy again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopd_vl.core.divergences import DivergenceName, without_autocast
from dopd_vl.core.passes import dense_divergence, mass_of, mass_outside, top_k_of

CPU_CHUNK_SIZE = 256
GPU_CHUNK_SIZE = 2048
GPU_CHUNK_BYTES = 2**31
"""What a chunk's logits and their gradient may take at most on a GPU."""


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

    def chunk_size(self, given: int | None = None) -> int:
        """Rows to project at a time: as given, else `chunk_size_for` it."""
        if given is None:
            return chunk_size_for(self.weight.device, self.weight.shape[0], self.compute_dtype)
        return given

    def constant(self) -> "Projection":
        """The same without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Projection(self.hidden.detach(), self.weight.detach(), bias, self.dtype)


class Projector:
    """A projection as the products of one sweep use it: the head is cast once, not once a chunk."""

    def __init__(self, projection: Projection):
        self.projection = projection
        self.dtype = projection.compute_dtype

    @property
    def factor_dtype(self) -> torch.dtype:
        """The dtype that the factors of `product` stand in."""
        return self.dtype if self.projection.weight.is_cuda else wide(self.dtype)

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


def chunk_size_for(device: torch.device | str, vocabulary: int, dtype: torch.dtype) -> int:
    """Response tokens to project at a time.

    On a CPU 256: 0.16 GB of fp32 logits at a vocabulary of 151,936. On a GPU 2,048, or as many as take at most 2 GiB
    (1,664 in fp32 at that vocabulary, 1,024 at 262,144): each chunk reads the head twice and its gradient once, and
    writes that, so that small chunks wait for memory. From 128 on by whole 128s, the tiles of its products.

    Args:
        dtype: what hidden states and head are multiplied in, `Projection.compute_dtype`; logits are of fp32 at least,
            and their gradient of this.
    """
    if torch.device(device).type == "cpu":
        return CPU_CHUNK_SIZE
    fitting = GPU_CHUNK_BYTES // (vocabulary * (wide(dtype).itemsize + dtype.itemsize))
    return min(GPU_CHUNK_SIZE, fitting // 128 * 128 or max(1, fitting))


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
    chunk_size: int | None = None,
    store: torch.device | str | None = None,
) -> TokenScores:
    """Score one policy in one sweep: each chunk of response tokens is projected once.

    Args:
        projection: hidden states `[B, N, H]` aligned so that position n predicts response token n, and the head.
        response_ids: `[B, N]` int64.
        response_mask: `[B, N]`, true where there is a response token; masked positions may hold anything.
        top_k: entries kept a position, at most the whole vocabulary.
        chunk_size: response tokens projected at a time; default: `chunk_size_for` this policy.
        store: where the K entries a token are kept, by far the largest part, e.g. "cpu" to keep them off the
            accelerator; default: where the hidden states are.
    """
    mask = response_mask.bool()
    hidden = projection.hidden
    top_k = min(top_k, projection.weight.shape[0])

    dtype = wide(hidden.dtype)

    def filled(value: float, *size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.full((*mask.shape, *size), value, dtype=dtype, device=hidden.device)

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
        for rows in chunks(mask, projection.chunk_size(chunk_size)):
            found = score_logits(policy.logits(rows), response_ids[rows], top_k)
            for field in fields(kept):
                whole = getattr(kept, field.name)
                whole[rows] = getattr(found, field.name).to(whole.dtype)
    if store is None:
        return kept
    # Once a sweep: a chunk's copy would wait for the accelerator.
    return replace(kept, top_k_ids=kept.top_k_ids.to(store), top_k_logp=kept.top_k_logp.to(store))


def score_logits(logits: Tensor, ids: Tensor, top_k: int) -> TokenScores:
    """Scores `[R]` of rows of logits `[R, V]`, which may be overwritten.

    The mass of a tail is summed over the tail itself: one minus the mass of the head would have no digits left where
    the policy is sure.
    """
    logits = logits.to(wide(logits.dtype))
    values, top_ids = top_k_of(logits, top_k)
    sampled = ids.unsqueeze(-1)
    own = logits.gather(-1, sampled)
    is_own = top_ids == sampled
    # Of tokens that are neither sampled nor among the K; of those outside the K; of all but the sampled one.
    left = mass_outside(logits.scatter_(-1, sampled, -torch.inf), top_ids)
    tail = left.including(own.masked_fill(is_own.any(-1, keepdim=True), -torch.inf))
    rest = left.including(values.masked_fill(is_own, -torch.inf))
    whole = tail.including(values)
    log_z = whole.log()
    return TokenScores(
        logp=(own - log_z).squeeze(-1),
        rest_logp=(rest.log() - log_z).squeeze(-1),
        entropy=whole.entropy().squeeze(-1),
        log_z=log_z.squeeze(-1),
        top_k_ids=top_ids,
        top_k_logp=values - log_z,
        tail_logp=(tail.log() - log_z).squeeze(-1),
    )


@torch.no_grad()
def divergence_of(
    name: DivergenceName,
    student: Projection,
    target: Projection,
    response_mask: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    """A full-vocabulary divergence of one policy from another at every response token, `[B, N]`, no gradient.

    Args:
        chunk_size: response tokens projected at a time; default: `chunk_size_for` the student.
    """
    mask = response_mask.bool()
    values = torch.zeros(mask.shape, dtype=wide(student.hidden.dtype), device=student.hidden.device)
    with without_autocast(student.hidden):
        policies = Projector(student), Projector(target)
        for rows in chunks(mask, student.chunk_size(chunk_size)):
            s, t = (policy.logits(rows) for policy in policies)
            value = dense_divergence(name, s, mass_of(s).log(), t, mass_of(t).log())
            values[rows] = value.squeeze(-1).to(values.dtype)
    return values


def chunks(mask: Tensor, chunk_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Indices of the true entries of `mask`, `chunk_size` at a time."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    indices = mask.nonzero(as_tuple=True)
    if len(indices[0]):
        yield from zip(*(index.split(chunk_size) for index in indices), strict=True)
