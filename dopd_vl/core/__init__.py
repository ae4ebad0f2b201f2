"""Tensors only: routing, divergences, plans and the losses that execute them. Imports torch, and nothing of ours."""

from dopd_vl.core.dopd import (
    PRIVILEGED_STUDENT,
    PRIVILEGED_TEACHER,
    DopdOutput,
    DopdSettings,
    dopd_loss,
    dopd_plan,
    route_tokens,
)
from dopd_vl.core.fused_loss import FusedLoss, fused_dopd_loss, fused_plan_loss, rows_to_keep
from dopd_vl.core.plan import Plan, PolicyGradient, Source, Term, execute_plan, item_count, reduce, token_scale
from dopd_vl.core.projection import Projection, TokenScores, divergence_of, score_tokens
from dopd_vl.core.routing import REGIMES, Regime, Thresholds, advantage_gap, compute_thresholds, route

__all__ = [
    "PRIVILEGED_STUDENT",
    "PRIVILEGED_TEACHER",
    "REGIMES",
    "DopdOutput",
    "DopdSettings",
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
    "dopd_loss",
    "dopd_plan",
    "execute_plan",
    "fused_dopd_loss",
    "fused_plan_loss",
    "item_count",
    "reduce",
    "route",
    "route_tokens",
    "rows_to_keep",
    "score_tokens",
    "token_scale",
]
