"""Every method, one small file each: scores in, a plan out."""

from dopd_vl.objectives.base import Decision, Objective, Scores
from dopd_vl.objectives.cal_opd import CalOpd
from dopd_vl.objectives.controls import Negative, SelfPlain
from dopd_vl.objectives.dapd import Dapd
from dopd_vl.objectives.dopd import Dopd
from dopd_vl.objectives.dopd_anchored import DopdAnchored
from dopd_vl.objectives.eopd import Eopd
from dopd_vl.objectives.exopd import ExOpd
from dopd_vl.objectives.opcd import Opcd
from dopd_vl.objectives.opd import Opd
from dopd_vl.objectives.opd_v import OpdV
from dopd_vl.objectives.opsd import Opsd
from dopd_vl.objectives.rp_opsd import RpOpsd
from dopd_vl.objectives.s2vopd import S2vOpd
from dopd_vl.objectives.sa_opd import SaOpd
from dopd_vl.objectives.sdft import Sdft
from dopd_vl.objectives.sdpo import Sdpo
from dopd_vl.objectives.tip import Tip
from dopd_vl.objectives.top_d import TopD
from dopd_vl.objectives.uni_opd import UniOpd
from dopd_vl.objectives.va_opd import VaOpd
from dopd_vl.objectives.vision_opd import VisionOpd

_SHIPPED: tuple[type[Objective], ...] = (
    *(Opd, Opcd, ExOpd, UniOpd, Sdft, Opsd, Sdpo, Eopd, Tip, VisionOpd, VaOpd),
    *(TopD, SaOpd, CalOpd, RpOpsd, S2vOpd, OpdV, Dapd),
    *(Dopd, DopdAnchored),
    *(Negative, SelfPlain),
)
OBJECTIVES = {objective.name: objective for objective in _SHIPPED}
"""name in a configuration -> method: those of others, DOPD and ours, controls"""

__all__ = [
    "OBJECTIVES",
    "CalOpd",
    "Dapd",
    "Decision",
    "Dopd",
    "DopdAnchored",
    "Eopd",
    "ExOpd",
    "Negative",
    "Objective",
    "Opcd",
    "Opd",
    "OpdV",
    "Opsd",
    "RpOpsd",
    "S2vOpd",
    "SaOpd",
    "Scores",
    "Sdft",
    "Sdpo",
    "SelfPlain",
    "Tip",
    "TopD",
    "UniOpd",
    "VaOpd",
    "VisionOpd",
]
