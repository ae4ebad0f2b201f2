"""DOPD (arXiv 2606.30626): the teacher is a larger, frozen model that sees x and p; so does a copy of the student.

The copy has the student's current weights and no gradient. Where the two agree, or where the student's copy is the
surer one, there is nothing for the teacher's strong signal to add beyond what p reveals; where the teacher is surer,
there is.
`dopd_vl.core.dopd` has the regimes and what each is taught. The paper's ablations are settings of `Dopd`: what each
regime is taught, the routing itself, what teacher and student's copy see, whose weights the copy has, dropped tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dopd_vl.core import (
    PRIVILEGED_STUDENT,
    PRIVILEGED_TEACHER,
    REGIMES,
    DopdSettings,
    Plan,
    Regime,
    Source,
    Term,
    dopd_plan,
    route_tokens,
)
from dopd_vl.core.divergences import DivergenceName, SupportName
from dopd_vl.objectives.base import Decision, Scores
from dopd_vl.objectives.common import check_choice, check_not_negative, check_share


@dataclass(frozen=True)
class Lesson:
    """What the tokens of one regime are taught."""

    source: Literal["teacher", "student"]
    """who supervises: the teacher, or the student's copy"""
    divergence: DivergenceName
    support: SupportName
    weight: float
    enabled: bool = True
    """false: these tokens are taught nothing"""

    def __post_init__(self) -> None:
        check_choice("source", self.source, ("teacher", "student"))
        for name, kind in (("weight", (int, float)), ("enabled", bool)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a {'number' if name == 'weight' else 'bool'}")
        check_not_negative("weight", self.weight)


@dataclass(frozen=True)
class Dopd(DopdSettings):
    """Dual on-policy distillation: as published by default, its ablations by settings."""

    name: ClassVar[str] = "dopd"

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
    average_rate: float = 0.02
    """share of the student's weights in the average, each step; for "average" alone"""
    drop: Literal["none", "random", "smallest", "largest"] = "none"
    """response tokens that are taught nothing: at "random", or those of "smallest" or "largest" gap"""
    drop_fraction: float = 0.2
    """share of the batch's response tokens that is dropped, rounded down"""

    def __post_init__(self) -> None:
        super().__post_init__()
        views = ("privileged", "plain")
        check_choice("teacher_view", self.teacher_view, views)
        check_choice("student_view", self.student_view, views)
        check_choice("student_policy", self.student_policy, ("student", "average", "start"))
        check_choice("drop", self.drop, ("none", "random", "smallest", "largest"))
        check_share("average_rate", self.average_rate)
        check_share("drop_fraction", self.drop_fraction)
        for name in self.regimes:
            check_choice("regime in regimes", name, [regime.name for regime in REGIMES])
        self._general_plan(torch.zeros(0, dtype=torch.long))  # names what cannot be taught

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
        as_published = not self.regimes and self.sources() == (PRIVILEGED_TEACHER, PRIVILEGED_STUDENT)
        taught = regime.masked_fill(dropped, int(Regime.MASKED))
        return Decision(
            plan=dopd_plan(taught, self) if as_published else self._general_plan(taught),
            parts={r.name: regime == r for r in REGIMES} | ({} if self.drop == "none" else {"dropped": dropped}),
            values=values,
            per_token={"regime": regime, "gap": gap},
        )

    def _lessons(self) -> dict[Regime, Lesson]:
        published = {
            Regime.LH: Lesson("teacher", "reverse_kl", "top_k", self.beta_light),
            Regime.LL: Lesson("student", "reverse_kl", "top_k", self.beta_weak),
            Regime.HT: Lesson("teacher", "js", "full", 1.0),
            Regime.HS: Lesson("student", "reverse_kl", "top_k", self.beta_light),
        }
        return {r: changed(lesson, self.regimes.get(r.name, {}), r.name) for r, lesson in published.items()}

    def _general_plan(self, regime: Tensor) -> Plan:
        """As `dopd_plan`, with what `regimes` and the sources change: one term per regime."""
        sources = dict(zip(("teacher", "student"), self.sources(), strict=True))
        terms = []
        for r, lesson in self._lessons().items():
            weight = (regime == r).double() * (lesson.weight if lesson.enabled else 0.0)
            shape = () if lesson.support == "full" else (self.top_k, self.top_k_source, self.tail)
            try:
                terms.append(Term(sources[lesson.source], lesson.divergence, lesson.support, weight, *shape))
            except ValueError as error:
                raise ValueError(f"regimes.{r.name}: {error}") from error
        return Plan(tuple(terms))

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
    known = [f.name for f in fields(Lesson)]
    try:
        for name in changes:
            check_choice("key", name, known)
        return replace(lesson, **changes)
    except ValueError as error:
        raise ValueError(f"regimes.{regime}: {error}") from error
