"""Vanilla on-policy distillation (arXiv 2306.13649; Thinking Machines 2025).

The teacher is a larger, frozen model. It sees what the student sees (`teacher_view: plain`), and every response token
is taught alike: a divergence from the teacher's distribution at the student's own prefix. With `teacher_view:
privileged` the teacher sees the privileged input too: uniform privileged distillation, the baseline that DOPD's routing
must beat.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dopd_vl.core import Plan, Source, Term
from dopd_vl.core.divergences import DivergenceName, SupportName, TailName, TopKSource
from dopd_vl.objectives.base import Decision, Scores


@dataclass(frozen=True)
class Opd:
    """Uniform distillation of every response token from one teacher."""

    name: ClassVar[str] = "opd"

    teacher_view: Literal["plain", "privileged"] = "plain"
    """what the teacher sees"""
    divergence: DivergenceName = "reverse_kl"
    """"reverse_kl", "forward_kl" or "js" """
    support: SupportName = "full"
    """"full", "top_k" or "sampled": the vocabulary entries looked at one by one"""
    top_k: int = 128
    """K, with support "top_k" """
    top_k_source: TopKSource = "target"
    """whose K tokens: "target" (the teacher's), "student" or "union" """
    tail: TailName = "bucket"
    """what becomes of the rest: "bucket", "renormalize" or "drop" """

    @property
    def _teacher(self) -> Source:
        return Source("teacher", self.teacher_view)

    def sources(self) -> tuple[Source, ...]:
        return (self._teacher,)

    def decide(self, scores: Scores) -> Decision:
        term = Term(
            self._teacher,
            self.divergence,
            self.support,
            scores.response_mask.float(),
            self.top_k,
            self.top_k_source,
            self.tail,
        )
        return Decision(Plan((term,)))
