"""DOPD's loss (arXiv 2606.30626): route every token, then let its regime decide who teaches it, how and how strongly.

    LH  reverse KL to T(.|x,p), Top-K            x beta_light    both sure: a light touch from the teacher
    LL  reverse KL to sg S(.|x,p), Top-K         x beta_weak     both unsure: a weak touch from itself
    HT  JS to T(.|x,p), full vocabulary          x 1             the teacher knows more: its whole distribution
    HS  reverse KL to sg S(.|x,p), Top-K         x beta_light    the student knows more: a light touch from itself

Nothing but S(.|x) receives a gradient.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dopd_vl.core.divergences import TAILS, TOP_K_SOURCES, TailName, TopKSource, log_softmax, sampled_logp
from dopd_vl.core.plan import Plan, Source, Term, execute_plan, reduce
from dopd_vl.core.routing import (
    THRESHOLD_SCOPES,
    Regime,
    Thresholds,
    ThresholdScope,
    advantage_gap,
    compute_thresholds,
    route,
)

PRIVILEGED_TEACHER = Source("teacher", "privileged")
PRIVILEGED_STUDENT = Source("student", "privileged")


@dataclass(frozen=True)
class DopdSettings:
    """What DOPD leaves to choose. Defaults are the paper's where it gives them, else the documented choice."""

    beta_light: float = 0.6
    """weight of LH and HS tokens"""
    beta_weak: float = 0.3
    """weight of LL tokens"""
    top_k: int = 128
    """K of the Top-K reverse KLs, vocabulary entries"""
    trim_fraction: float = 0.05
    """share of the tokens, of largest gap, that the thresholds' means leave out"""
    threshold_scope: ThresholdScope = "global"
    """over which tokens the means go: "global" (the optimizer-step batch over all ranks), "rank", "sequence" """
    top_k_source: TopKSource = "target"
    """whose K tokens: the supervising policy's ("target"), the student's, or the "union" """
    tail: TailName = "bucket"
    """what becomes of the mass outside the K tokens: one "bucket", "renormalize", or "drop" """

    def __post_init__(self) -> None:
        for name in ("beta_light", "beta_weak"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number, not negative")
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1")
        if not 0.0 <= self.trim_fraction < 1.0:
            raise ValueError(f"trim_fraction={self.trim_fraction} must be at least 0 and below 1")
        choices = (
            ("threshold_scope", THRESHOLD_SCOPES),
            ("top_k_source", TOP_K_SOURCES),
            ("tail", TAILS),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}, expected one of {', '.join(allowed)}")


class DopdOutput(NamedTuple):
    """The loss and everything that led to it. Only `loss` and `token_loss` carry a gradient."""

    loss: Tensor
    """scalar: mean over sequences of the mean over their tokens"""
    token_loss: Tensor
    """`[B, N]`, weighted, zero where masked"""
    regime: Tensor
    """`[B, N]` int64: 0 LH, 1 LL, 2 HT, 3 HS, -1 masked"""
    gap: Tensor
    """`[B, N]` nats, zero where masked"""
    teacher_logp: Tensor
    """`[B, N]`, log-probability of the sampled token under T(.|x,p), zero where masked"""
    privileged_student_logp: Tensor
    """`[B, N]`, the same under S(.|x,p)"""
    thresholds: Thresholds


class Routing(NamedTuple):
    """Who was routed where, and by which thresholds."""

    regime: Tensor
    gap: Tensor
    thresholds: Thresholds


def route_tokens(
    teacher_logp: Tensor, privileged_student_logp: Tensor, response_mask: Tensor, settings: DopdSettings
) -> Routing:
    """Regimes `[B, N]`, gap `[B, N]` and thresholds from the sampled tokens' log-probabilities `[B, N]`."""
    thresholds = compute_thresholds(
        teacher_logp, privileged_student_logp, response_mask, settings.trim_fraction, settings.threshold_scope
    )
    regime = route(teacher_logp, privileged_student_logp, response_mask, thresholds)
    gap = advantage_gap(teacher_logp, privileged_student_logp).masked_fill(~response_mask.bool(), 0.0)
    return Routing(regime, gap, thresholds)


def dopd_plan(regime: Tensor, settings: DopdSettings) -> Plan:
    """The plan that teaches each token by its regime `[B, N]`: one term per regime."""

    def where(of: Regime, weight: float) -> Tensor:
        return (regime == of).double() * weight  # float64: fp64 losses must not carry a weight rounded to fp32

    def light(source: Source, weight: Tensor) -> Term:
        return Term(source, "reverse_kl", "top_k", weight, settings.top_k, settings.top_k_source, settings.tail)

    return Plan(
        terms=(
            light(PRIVILEGED_TEACHER, where(Regime.LH, settings.beta_light)),
            light(PRIVILEGED_STUDENT, where(Regime.LL, settings.beta_weak)),
            Term(PRIVILEGED_TEACHER, "js", "full", where(Regime.HT, 1.0)),
            light(PRIVILEGED_STUDENT, where(Regime.HS, settings.beta_light)),
        )
    )


def dopd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    privileged_student_logits: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    settings: DopdSettings = DopdSettings(),
) -> DopdOutput:
    """DOPD on whole logits: the reference, and fast enough for small vocabularies.

    Args:
        student_logits: `[B, N, V]` of S(.|x), position n predicts response token n. The only input with a gradient.
        teacher_logits: `[B, N, V]` of T(.|x,p).
        privileged_student_logits: `[B, N, V]` of S(.|x,p).
        response_ids: `[B, N]` int64, the sampled tokens.
        response_mask: `[B, N]`, true where there is a response token. Masked positions may hold anything.

    Raises:
        ValueError: shapes or vocabularies differ, Top-K exceeds the vocabulary, a token id or a logit is out of range.
    """
    check_inputs(
        {
            "student_logits": student_logits,
            "teacher_logits": teacher_logits,
            "privileged_student_logits": privileged_student_logits,
        },
        response_ids,
        response_mask,
        student_logits.shape[-1],
        settings.top_k,
    )
    for name, logits in (("teacher_logits", teacher_logits), ("privileged_student_logits", privileged_student_logits)):
        if logits.shape[-1] != student_logits.shape[-1]:
            raise ValueError(
                f"{name} has a vocabulary of {logits.shape[-1]}, student_logits of {student_logits.shape[-1]}"
            )
    mask = response_mask.bool()
    teacher_logp = _response_logp(teacher_logits, response_ids, mask)
    privileged_student_logp = _response_logp(privileged_student_logits, response_ids, mask)
    routing = route_tokens(teacher_logp, privileged_student_logp, mask, settings)
    plan = dopd_plan(routing.regime, settings)
    sources = {PRIVILEGED_TEACHER: teacher_logits, PRIVILEGED_STUDENT: privileged_student_logits}
    token_loss = execute_plan(plan, student_logits, sources, response_ids, mask)
    return DopdOutput(
        loss=reduce(token_loss, mask, plan.reduction),
        token_loss=token_loss,
        regime=routing.regime,
        gap=routing.gap,
        teacher_logp=teacher_logp,
        privileged_student_logp=privileged_student_logp,
        thresholds=routing.thresholds,
    )


def check_inputs(
    tensors: dict[str, Tensor], response_ids: Tensor, response_mask: Tensor, vocabulary: int, top_k: int
) -> None:
    """Raise a ValueError that names the first tensor whose shape or content cannot be used."""
    if response_ids.ndim != 2:
        raise ValueError(f"response_ids must be [B, N], got shape {tuple(response_ids.shape)}")
    if response_mask.shape != response_ids.shape:
        raise ValueError(
            f"response_mask has shape {tuple(response_mask.shape)}, response_ids has {tuple(response_ids.shape)}"
        )
    if response_ids.is_floating_point() or response_ids.dtype == torch.bool:
        raise ValueError(f"response_ids must be integers, got {response_ids.dtype}")
    mask = response_mask.bool()
    for name, tensor in tensors.items():
        if tensor.ndim != 3 or tensor.shape[:2] != response_ids.shape:
            raise ValueError(
                f"{name} must be [B, N, .] with [B, N] = {tuple(response_ids.shape)}, got {tuple(tensor.shape)}"
            )
        if torch.isnan(tensor[mask]).any() or torch.isposinf(tensor[mask]).any():
            raise ValueError(f"{name} holds NaN or +inf at a response token")
        if torch.isneginf(tensor[mask]).all(dim=-1).any():
            raise ValueError(f"{name} is -inf everywhere at a response token, which is no distribution")
    if top_k > vocabulary:
        raise ValueError(f"top_k={top_k} is larger than the vocabulary of {vocabulary} entries")
    chosen = response_ids[mask]
    if chosen.numel() and (chosen.min() < 0 or chosen.max() >= vocabulary):
        raise ValueError(f"response_ids must be in [0, {vocabulary}), got {int(chosen.min())} to {int(chosen.max())}")


def _response_logp(logits: Tensor, response_ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of the response tokens, `[B, N]`, zero where masked, no gradient."""
    chosen = sampled_logp(log_softmax(logits[mask].detach()), response_ids[mask])
    return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen)
