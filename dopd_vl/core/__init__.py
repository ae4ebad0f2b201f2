"""Tensors only: routing, divergences, plans and the loss that executes them. Imports torch, and nothing of ours."""

from dopd_vl.core.fused_loss import FusedLoss, fused_plan_loss, rows_to_keep
from dopd_vl.core.plan import Plan, PolicyGradient, Source, Term, execute_plan, item_count, reduce, token_scale
from dopd_vl.core.projection import Projection, TokenScores, divergence_of, score_tokens
from dopd_vl.core.routing import REGIMES, Regime, Thresholds, advantage_gap, compute_thresholds, route

__all__ = [
    "REGIMES",
    "FusedLoss",
    "Plan",
    "PolicyGradient",
    "Projection",
    "Regime",
    "Source",
    "Term",
    "Thresholds",
    "TokenScores",
    "advantage_gap",
    "compute_thresholds",
    "divergence_of",
    "execute_plan",
    "fused_plan_loss",
    "item_count",
    "reduce",
    "route",
    "rows_to_keep",
    "score_tokens",
    "token_scale",
]
