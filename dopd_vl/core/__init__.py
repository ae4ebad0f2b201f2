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
from dopd_vl.core.fused_loss import Projection, fused_dopd_loss, fused_plan_loss, score_sampled
from dopd_vl.core.plan import Plan, Source, Term, execute_plan, item_count, reduce, token_scale
from dopd_vl.core.routing import REGIMES, Regime, Thresholds, advantage_gap, compute_thresholds, route

__all__ = [
    "PRIVILEGED_STUDENT",
    "PRIVILEGED_TEACHER",
    "REGIMES",
    "DopdOutput",
    "DopdSettings",
    "Plan",
    "Projection",
    "Regime",
    "Source",
    "Term",
    "Thresholds",
    "advantage_gap",
    "compute_thresholds",
    "dopd_loss",
    "dopd_plan",
    "execute_plan",
    "fused_dopd_loss",
    "fused_plan_loss",
    "item_count",
    "reduce",
    "route",
    "route_tokens",
    "score_sampled",
    "token_scale",
]
