"""The plain definitions of every divergence, on log-probabilities: short, slow, the reference.

All quantities are in nats. Shape suffixes: B sequences, N response tokens, V vocabulary entries, K the Top-K size.

A *support* says which vocabulary entries a divergence looks at one by one; a *tail* says what becomes of the rest. Both
are expressed by one operation, `coarsen`: entries outside the support go to probability zero and, with `tail="bucket"`,
their joint mass moves to one extra slot. Every divergence below is then an ordinary sum over the last dimension.

    S  the student that learns      T  the policy that supervises (a constant)      M = (S + T) / 2
    reverse KL   KL(S||T) = sum_v S(v) (log S(v) - log T(v))
    forward KL   KL(T||S) = sum_v T(v) (log T(v) - log S(v))
    JS           1/2 KL(T||M) + 1/2 KL(S||M)
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

DivergenceName = Literal["reverse_kl", "forward_kl", "js"]
SupportName = Literal["sampled", "top_k", "full"]
TailName = Literal["bucket", "renormalize", "drop"]
TopKSource = Literal["target", "student", "union"]

DIVERGENCES: tuple[str, ...] = get_args(DivergenceName)
SUPPORTS: tuple[str, ...] = get_args(SupportName)
TAILS: tuple[str, ...] = get_args(TailName)
TOP_K_SOURCES: tuple[str, ...] = get_args(TopKSource)

LOG_PROB_FLOOR = -100.0
"""Log-probabilities (nats) below this count as this: it keeps a gap or a divergence finite where a policy gives a token
probability zero. fp32 softmax underflows to zero at about -104 nats."""


def without_autocast(tensor: Tensor) -> torch.autocast:
    """While it lasts, arithmetic has the dtype of its tensors, whatever autocast the caller has on.

    Besides matrix products, `vecdot` is on its list: in bf16, sums over a vocabulary keep two digits.
    """
    return torch.autocast(tensor.device.type, enabled=False)


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities `[..., V]` in fp32 at least, whatever the dtype of `logits` (fp64 stays fp64)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits, dim=-1, dtype=dtype)


def sampled_logp(logp: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of the sampled tokens: `logp[..., V]`, `ids[...]` -> `[...]`."""
    return logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def support_mask(
    support: SupportName,
    student_logp: Tensor,
    target_logp: Tensor,
    ids: Tensor,
    top_k: int = 128,
    top_k_source: TopKSource = "target",
) -> Tensor | None:
    """Which vocabulary entries a divergence looks at one by one: bool `[..., V]`, or None for all of them.

    `top_k_source` is whose K most likely tokens are meant: the supervising policy's, the student's or both.
    """
    if support == "full":
        return None
    chosen = torch.zeros_like(target_logp, dtype=torch.bool)
    if support == "sampled":
        return chosen.scatter(-1, ids.unsqueeze(-1), True)
    if support != "top_k":
        raise ValueError(f"unknown support {support!r}, expected one of {', '.join(SUPPORTS)}")
    if top_k > target_logp.shape[-1]:
        raise ValueError(f"top_k={top_k} is larger than the vocabulary of {target_logp.shape[-1]} entries")
    if top_k_source not in TOP_K_SOURCES:
        raise ValueError(f"unknown top_k_source {top_k_source!r}, expected one of {', '.join(TOP_K_SOURCES)}")
    if top_k_source in ("target", "union"):
        chosen = chosen.scatter(-1, target_logp.topk(top_k, dim=-1).indices, True)
    if top_k_source in ("student", "union"):
        chosen = chosen.scatter(-1, student_logp.detach().topk(top_k, dim=-1).indices, True)
    return chosen


def coarsen(logp: Tensor, support: Tensor | None, tail: TailName) -> Tensor:
    """Restrict `logp[..., V]` to a support and treat the rest by `tail`.

    Returns `[..., V + 1]` for "bucket" (the last slot holds the log of the remaining mass), `[..., V]` otherwise.
    Entries outside the support are -inf. "renormalize" divides by the kept mass; "drop" leaves it as it is, so that the
    result sums to less than one.
    """
    if support is None:
        return logp
    kept = logp.masked_fill(~support, -math.inf)
    if tail == "drop":
        return kept
    if tail == "renormalize":
        return kept - _logsumexp(kept).clamp(min=LOG_PROB_FLOOR)
    if tail != "bucket":
        raise ValueError(f"unknown tail {tail!r}, expected one of {', '.join(TAILS)}")
    return torch.cat([kept, _logsumexp(logp.masked_fill(support, -math.inf))], dim=-1)


def kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """`sum_v p(v) (log p(v) - log q(v))` over the last dimension, with 0 log 0 = 0 and finite where q is zero."""
    return _kl_entries(p_logp, q_logp).sum(-1)


def js(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """Jensen-Shannon divergence with the even mixture, over the last dimension. At most log 2."""
    return _js_entries(p_logp, q_logp).sum(-1)


def divergence(
    name: DivergenceName,
    student_logp: Tensor,
    target_logp: Tensor,
    entry_clip: float = math.inf,
    corrected: bool = False,
) -> Tensor:
    """The named divergence of the student from the policy that supervises it: `[..., V] x [..., V] -> [...]`.

    Args:
        entry_clip: each vocabulary entry's summand counts for this much at most; one above it has no gradient. The sum
            may then be negative.
        corrected: KL(P||Q) of measures that need not sum to one, `sum_v p log(p/q) - p + q`: no summand is negative,
            and at p = q none has a gradient (arXiv 2607.24447). JS needs no correction.
    """
    if name == "js":
        entries = _js_entries(student_logp, target_logp)
    elif name in ("reverse_kl", "forward_kl"):
        p_logp, q_logp = (student_logp, target_logp) if name == "reverse_kl" else (target_logp, student_logp)
        entries = _kl_entries(p_logp, q_logp)
        if corrected:
            entries = entries - p_logp.exp() + q_logp.exp()
    else:
        raise ValueError(f"unknown divergence {name!r}, expected one of {', '.join(DIVERGENCES)}")
    return entries.clamp(max=entry_clip).sum(-1)


def entropy(logp: Tensor) -> Tensor:
    """Shannon entropy in nats over the last dimension."""
    return -(logp.exp() * _floor(logp)).sum(-1)


def _kl_entries(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    return p_logp.exp() * (_floor(p_logp) - _floor(q_logp))


def _js_entries(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    p_logp, q_logp = _floor(p_logp), _floor(q_logp)
    mixture_logp = torch.logaddexp(p_logp, q_logp) - math.log(2.0)
    return 0.5 * _kl_entries(q_logp, mixture_logp) + 0.5 * _kl_entries(p_logp, mixture_logp)


def _floor(logp: Tensor) -> Tensor:
    return logp.clamp(min=LOG_PROB_FLOOR)


def _logsumexp(logp: Tensor) -> Tensor:
    """logsumexp over the last dimension, kept; a row of -inf gives -inf and, unlike torch's, no NaN gradient."""
    empty = torch.isneginf(logp).all(dim=-1, keepdim=True)
    return torch.logsumexp(logp.masked_fill(empty, 0.0), dim=-1, keepdim=True).masked_fill(empty, -math.inf)
