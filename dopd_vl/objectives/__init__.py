"""Every method, one small file each: scores in, a plan out."""

from dopd_vl.objectives.base import Decision, Objective, Scores
from dopd_vl.objectives.dopd import Dopd
from dopd_vl.objectives.opd import Opd

OBJECTIVES: dict[str, type[Objective]] = {
    "opd": Opd,
    "dopd": Dopd,
}

__all__ = ["OBJECTIVES", "Decision", "Dopd", "Objective", "Opd", "Scores"]
