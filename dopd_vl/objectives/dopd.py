"""DOPD (arXiv 2606.30626): route every token, then let its regime decide who teaches it, how and how strongly.

    LH  reverse KL to T(.|x,p), Top-K            x beta_light    both sure: a light touch from the teacher
    LL  reverse KL to sg S(.|x,p), Top-K         x beta_weak     both unsure: a weak touch from itself
    HT  JS to T(.|x,p), full vocabulary          x 1             the teacher knows more: its whole distribution
    HS  reverse KL to sg S(.|x,p), Top-K         x beta_light    the student knows more: a light touch from itself

The teacher is a larger, frozen model that sees x and p; so does a copy of the student, which has the student's current
weights and no gradient. Where the two agree, or where the student's copy is the surer one, there is nothing for the
teacher's strong signal to add beyond what p reveals; where the teacher is surer, there is. Nothing but S(.|x) receives
a gradient. The paper's ablations are settings of `Dopd`: what each regime is taught, the routing itself, what teacher
and student's copy see, whose weights the copy has, dropped tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from dopd_vl.core import REGIMES, Plan, Regime, Source, Term, Thresholds, advantage_gap, compute_thresholds, route
from dopd_vl.core.divergences import DivergenceName, SupportName, TailName, TopKSource
from dopd_vl.core.routing import ThresholdScope
from dopd_vl.objectives.base import Decision, Scores, Stuck
from dopd_vl.objectives.common import (
    PRIVILEGED_STUDENT,
    PRIVILEGED_TEACHER,
    AtLeastOne,
    CheckedSettings,
    NotNegative,
    Share,
    ShareLeftOut,
    check_choice,
)


@dataclass(frozen=True)
class DopdSettings(CheckedSettings):
    """What DOPD leaves to choose. Defaults are the paper's where it gives them, else the documented choice."""

    beta_light: NotNegative = 0.6
    """weight of LH and HS tokens"""
    beta_weak: NotNegative = 0.3
    """weight of LL tokens"""
    top_k: AtLeastOne = 128
    """K of the Top-K reverse KLs, vocabulary entries"""
    trim_fraction: ShareLeftOut = 0.05
    """share of the tokens, of largest gap, that the thresholds' means leave out"""
    threshold_scope: ThresholdScope = "global"
    """over which tokens the means go: "global" (the optimizer-step batch over all ranks), "rank", "sequence" """
    top_k_source: TopKSource = "target"
    """whose K tokens: the supervising policy's ("target"), the student's, or the "union" """
    tail: TailName = "bucket"
    """what becomes of the mass outside the K tokens: one "bucket", "renormalize", or "drop" """


PUBLISHED = DopdSettings()


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


@dataclass(frozen=True)
class Lesson(CheckedSettings):
    """What the tokens of one regime are taught."""

    source: Literal["teacher", "student"]
    """who supervises: the teacher, or the student's copy"""
    divergence: DivergenceName
    support: SupportName
    weight: NotNegative
    enabled: bool = True
    """false: these tokens are taught nothing"""

    def __post_init__(self) -> None:
        for name, kind in (("weight", (int, float)), ("enabled", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a {'number' if name == 'weight' else 'bool'}")
        super().__post_init__()


def published_lessons(settings: DopdSettings) -> dict[Regime, Lesson]:
    """What the paper teaches each regime: the table at the head of this file."""
    return {
        Regime.LH: Lesson("teacher", "reverse_kl", "top_k", settings.beta_light),
        Regime.LL: Lesson("student", "reverse_kl", "top_k", settings.beta_weak),
        Regime.HT: Lesson("teacher", "js", "full", 1.0),
        Regime.HS: Lesson("student", "reverse_kl", "top_k", settings.beta_light),
    }


def dopd_plan(
    regime: Tensor,
    settings: DopdSettings,
    lessons: Mapping[Regime, Lesson] | None = None,
    teacher: Source = PRIVILEGED_TEACHER,
    copy: Source = PRIVILEGED_STUDENT,
) -> Plan:
    """The plan that teaches each token by its regime `[B, N]`: one term a regime.

    Args:
        lessons: what each regime is taught; the published ones by default.
        teacher, copy: who the lessons' "teacher" and "student" are.

    Raises:
        ValueError: a lesson cannot be taught; the message names its regime.
    """
    terms = []
    for r, lesson in (lessons or published_lessons(settings)).items():
        source = teacher if lesson.source == "teacher" else copy
        # In float64: fp64 losses must not carry a weight rounded to fp32.
        weight = (regime == r).double() * (lesson.weight if lesson.enabled else 0.0)
        support = () if lesson.support == "full" else (settings.top_k, settings.top_k_source, settings.tail)
        try:
            terms.append(Term(source, lesson.divergence, lesson.support, weight, *support))
        except ValueError as error:
            raise ValueError(f"regimes.{r.name}: {error}") from error
    return Plan(tuple(terms))


@dataclass(frozen=True)
class Dopd(DopdSettings):
    """Dual on-policy distillation: as published by default, its ablations by settings."""

    name: ClassVar[str] = "dopd"
    paper: ClassVar[str] = "2606.30626"
    copy_part: ClassVar[str] = "HS"
    live_copy_remedy: ClassVar[str] = "set objective.settings.student_policy: start, or objective.name: dopd-anchored"

    regimes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what else a regime is taught, e.g. `{"HS": {"source": "teacher", "weight": 1.0}}`: regimes LH, LL, HT, HS; keys
    source ("teacher", "student"), divergence, support, weight, enabled; whatever is not named stays the paper's"""
    routing: bool = True
    """false: every token is taught what HT tokens are, the JS to the teacher over the whole vocabulary by default"""
    teacher_view: Literal["privileged", "plain"] = "privileged"
    """what the teacher sees"""
    student_view: Literal["privileged", "plain"] = "privileged"
    """what the student's copy sees; with "plain" it is the student itself, and teaches nothing"""
    student_policy: Literal["student", "average", "start"] = "student"
    """the copy's weights: "student", the current ones; "average", their slow average; "start", before the first step"""
    average_rate: Share = 0.02
    """share of the student's weights in the average, each step; for "average" alone"""
    drop: Literal["none", "random", "smallest", "largest"] = "none"
    """response tokens that are taught nothing: at "random", or those of "smallest" or "largest" gap"""
    drop_fraction: Share = 0.2
    """share of the batch's response tokens that is dropped, rounded down"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.regimes:
            check_choice("regime in regimes", name, [regime.name for regime in REGIMES])
        self._plan(torch.zeros(0, dtype=torch.long))  # names what cannot be taught

    @property
    def stuck_parts(self) -> dict[str, Stuck]:
        if not self.routing:
            return {}
        alike = "teacher and the student's copy never differ; look at model.teacher and privilege.teacher_variant"
        weak = "the teacher is never the surer one; model.teacher or privilege.teacher_variant is too weak"
        scope = "all tokens are alike to it; try objective.settings.threshold_scope or trim_fraction"
        copy = "the student's copy is never the surer one; look at privilege.copy_variant"
        return {
            "HT": Stuck(weak, scope),
            "HS": Stuck(copy, scope),
            "LH": Stuck(scope, alike),
            "LL": Stuck(scope, alike),
        }

    def sources(self) -> tuple[Source, ...]:
        return (Source("teacher", self.teacher_view), Source(self.student_policy, self.student_view))

    def decide(self, scores: Scores) -> Decision:
        mask = scores.response_mask
        teacher_logp, student_logp = (scores.policies[source].logp for source in self.sources())
        regime, gap, thresholds = route_tokens(teacher_logp, student_logp, mask, self)
        values = {}
        if self.routing:
            values = {
                "gap/threshold": thresholds.gap.mean().item(),
                "gap/teacher_prob_threshold": thresholds.teacher_prob.mean().item(),
                "gap/student_prob_threshold": thresholds.student_prob.mean().item(),
            }
        else:
            regime = regime.masked_fill(mask, int(Regime.HT))
        dropped = self._dropped(gap, scores.response_ids, mask)
        return Decision(
            plan=self._plan(regime.masked_fill(dropped, int(Regime.MASKED))),
            parts={r.name: regime == r for r in REGIMES} | ({} if self.drop == "none" else {"dropped": dropped}),
            values=values,
            per_token={"regime": regime, "gap": gap},
        )

    def _plan(self, regime: Tensor) -> Plan:
        published = published_lessons(self)
        lessons = {r: changed(lesson, self.regimes.get(r.name, {}), r.name) for r, lesson in published.items()}
        return dopd_plan(regime, self, lessons, *self.sources())

    def _dropped(self, gap: Tensor, response_ids: Tensor, mask: Tensor) -> Tensor:
        """Which response tokens of the batch are taught nothing, bool `[B, N]`."""
        dropped = torch.zeros_like(mask)
        tokens = int(mask.sum())
        if self.drop == "none" or tokens == 0:
            return dropped
        if self.drop == "random":
            # The same batch drops the same tokens, in whatever run and on whatever device.
            ids = response_ids[mask].cpu()
            seed = int((ids * torch.arange(1, tokens + 1)).sum()) % 2**63
            order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed)).to(mask.device)
        else:
            order = gap[mask].argsort(descending=self.drop == "largest", stable=True)
        count = int(self.drop_fraction * tokens + 1e-9)
        chosen = torch.zeros(tokens, dtype=torch.bool, device=mask.device)
        chosen[order[:count]] = True
        return dropped.masked_scatter(mask, chosen)


def changed(lesson: Lesson, changes: Mapping[str, Any], regime: str) -> Lesson:
    """The lesson with some of its fields replaced; a wrong one is named."""
    try:
        for name in changes:
            check_choice("key", name, [f.name for f in fields(Lesson)])
        return replace(lesson, **changes)
    except ValueError as error:
        raise ValueError(f"regimes.{regime}: {error}") from error
