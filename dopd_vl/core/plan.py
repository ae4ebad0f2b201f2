"""A plan is what one step teaches: a list of terms, each a policy to learn from, a divergence, and a weight per token.

Every method is a small pure function from scores to a plan. `execute_plan` below is the reference executor, on whole
logits; `dopd_vl.core.fused_loss` executes the same plan from hidden states.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dopd_vl.core.divergences import (
    DIVERGENCES,
    SUPPORTS,
    TOP_K_SOURCES,
    DivergenceName,
    SupportName,
    TailName,
    TopKSource,
    coarsen,
    divergence,
    log_softmax,
    sampled_logp,
    support_mask,
    without_autocast,
)

Reduction = Literal["sequence", "token"]
TermTail = Literal["bucket", "renormalize", "drop", "renormalize_target", "corrected"]
"""What becomes of the mass outside the support, see `coarsen`; "renormalize_target" renormalizes the supervising policy
alone and leaves the student's kept mass as it is (arXiv 2603.07079); "corrected" drops it and keeps the rest a
divergence, see `divergence` (arXiv 2607.24447)."""
TERM_TAILS: tuple[str, ...] = get_args(TermTail)


@dataclass(frozen=True)
class Source:
    """A policy together with what it sees, e.g. the teacher on the privileged view."""

    policy: str
    """"teacher" (frozen) or "student" (the current weights, as a constant)"""
    view: str
    """"plain" or "privileged" """

    def __str__(self) -> str:
        return f"{self.policy}/{self.view}"


@dataclass(frozen=True)
class Term:
    """`weight[b, n] * divergence(S(.|x, y_<n), source(.|its view, y_<n))` at every token with a weight."""

    source: Source
    divergence: DivergenceName
    support: SupportName
    weight: Tensor
    """`[B, N]`, no gradient, of either sign; zero where the term does not apply"""
    top_k: int = 128
    top_k_source: TopKSource = "target"
    tail: TermTail = "bucket"
    entry_clip: float = math.inf
    """nats that one vocabulary entry (or the bucket) counts for at most; what is above has no gradient"""
    temperature: float = 1.0
    """that both distributions are compared at; other than 1 with support "full" alone"""

    def __post_init__(self) -> None:
        choices = (
            ("divergence", self.divergence, DIVERGENCES),
            ("support", self.support, SUPPORTS),
            ("tail", self.tail, TERM_TAILS),
            ("top_k_source", self.top_k_source, TOP_K_SOURCES),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}, expected one of {', '.join(allowed)}")
        if self.support == "top_k" and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1")
        if not self.entry_clip > 0.0:
            raise ValueError(f"entry_clip={self.entry_clip} must be above 0")
        if not self.temperature > 0.0 or (self.temperature != 1.0 and self.support != "full"):
            raise ValueError(f'temperature={self.temperature} must be above 0, and 1 unless support is "full"')
        if self.support == "sampled" and self.tail == "renormalize":
            raise ValueError('support="sampled" with tail="renormalize" is zero everywhere: use "bucket" or "drop"')


@dataclass(frozen=True)
class PolicyGradient:
    """`-weight[b, n] * S(y_n|x, y_<n) / sg S(y_n|x, y_<n)`: the policy gradient with the weight as advantage.

    On the student's own rollouts, with `log T - log S` of the sampled token as weight, its expected gradient is that of
    the reverse KL to T (Thinking Machines 2025). The value is minus the weight.
    """

    weight: Tensor
    """`[B, N]`, the advantage of the sampled token; of either sign, zero where the term does not apply"""


@dataclass(frozen=True)
class Plan:
    """The terms of one step; their token losses add up. `reduction` says how tokens become a scalar, see `reduce`."""

    terms: tuple[Term | PolicyGradient, ...]
    reduction: Reduction = "sequence"

    def sources(self) -> list[Source]:
        """The policies whose distributions the plan needs, each once."""
        return list(dict.fromkeys(term.source for term in self.terms if isinstance(term, Term)))


def execute_plan(
    plan: Plan,
    student_logits: Tensor,
    source_logits: Mapping[Source, Tensor],
    response_ids: Tensor,
    response_mask: Tensor,
) -> Tensor:
    """Weighted loss per token, `[B, N]` (fp32, or fp64 for fp64 logits), zero where masked.

    Differentiable in `student_logits[B, N, V]` alone. Computed without autocast.
    """
    with without_autocast(student_logits):
        return _token_loss(plan, student_logits, source_logits, response_ids, response_mask.bool())


def _token_loss(
    plan: Plan, student_logits: Tensor, source_logits: Mapping[Source, Tensor], response_ids: Tensor, mask: Tensor
) -> Tensor:
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    # An empty slice keeps the result attached to the student's graph even where no term applies to any token.
    token_loss = student_logits.new_zeros(mask.shape, dtype=dtype) + student_logits[:0].sum()
    for term in plan.terms:
        applies = mask & (term.weight != 0)
        if not applies.any():
            continue
        if isinstance(term, PolicyGradient):
            logp = sampled_logp(log_softmax(student_logits[applies]), response_ids[applies])
            values = -(logp - logp.detach()).exp()
        else:
            student_logp = log_softmax(student_logits[applies] / term.temperature)
            target_logp = log_softmax(source_logits[term.source][applies].detach() / term.temperature)
            values = term_divergence(term, student_logp, target_logp, response_ids[applies])
        weighted = (values * term.weight[applies]).to(dtype)
        token_loss = token_loss.index_put(applies.nonzero(as_tuple=True), weighted, accumulate=True)
    return token_loss


def term_divergence(term: Term, student_logp: Tensor, target_logp: Tensor, ids: Tensor) -> Tensor:
    """The term's unweighted divergence, `[..., V] x [..., V] -> [...]`, from log-probabilities."""
    chosen = support_mask(term.support, student_logp, target_logp, ids, term.top_k, term.top_k_source)
    student_tail, target_tail = _TAILS[term.tail]
    return divergence(
        term.divergence,
        coarsen(student_logp, chosen, student_tail),
        coarsen(target_logp, chosen, target_tail),
        term.entry_clip,
        term.tail == "corrected",
    )


_TAILS: dict[TermTail, tuple[TailName, TailName]] = {
    "bucket": ("bucket", "bucket"),
    "renormalize": ("renormalize", "renormalize"),
    "drop": ("drop", "drop"),
    "renormalize_target": ("drop", "renormalize"),
    "corrected": ("drop", "drop"),
}
"""The student's and the supervising policy's."""


def token_scale(response_mask: Tensor, reduction: Reduction, dtype: torch.dtype = torch.float32) -> Tensor:
    """What each token's loss is multiplied by before summing, `[B, N]`.

    "sequence": 1/|y|, so that every sequence counts the same once divided by the number of sequences.
    "token": 1, so that every token counts the same once divided by the number of tokens.
    """
    mask = response_mask.bool().to(dtype)
    if reduction == "token":
        return mask
    if reduction == "sequence":
        return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1.0)
    raise ValueError(f"unknown reduction {reduction!r}, expected sequence or token")


def item_count(response_mask: Tensor, reduction: Reduction) -> Tensor:
    """What the sum is divided by: the number of sequences with at least one response token, or of tokens."""
    mask = response_mask.bool()
    return mask.sum() if reduction == "token" else mask.any(dim=-1).sum()


def reduce(token_loss: Tensor, response_mask: Tensor, reduction: Reduction) -> Tensor:
    """Scalar loss; with "sequence" the mean over sequences of `(1/N) sum_n token_loss`. Zero without any token.

    Sequences without a response token are left out of the mean.
    """
    count = item_count(response_mask, reduction).clamp(min=1)
    scale = token_scale(response_mask, reduction, token_loss.dtype)
    return (token_loss * scale).sum() / count
