"""dopd-vl: on-policy distillation of Qwen3 and Qwen3-VL students with privileged information (arXiv 2606.30626)."""

import importlib
from typing import TYPE_CHECKING, Any

from dopd_vl.common.version import __version__

if TYPE_CHECKING:
    from dopd_vl.evaluation.verifiers import register_verifier
    from dopd_vl.objectives.dopd import DopdSettings
    from dopd_vl.objectives.dopd_loss import dopd_loss, fused_dopd_loss
    from dopd_vl.served.teacher import ServedTeacher
    from dopd_vl.train_config import ServerSettings
    from dopd_vl.training.arguments import DopdConfig
    from dopd_vl.training.teachers import Teacher
    from dopd_vl.training.trainer import DopdTrainer

__all__ = [
    "DopdConfig",
    "DopdSettings",
    "DopdTrainer",
    "ServedTeacher",
    "ServerSettings",
    "Teacher",
    "__version__",
    "dopd_loss",
    "fused_dopd_loss",
    "register_verifier",
]

_HOMES = {
    "DopdConfig": "dopd_vl.training.arguments",
    "DopdSettings": "dopd_vl.objectives.dopd",
    "DopdTrainer": "dopd_vl.training.trainer",
    "ServedTeacher": "dopd_vl.served.teacher",
    "ServerSettings": "dopd_vl.train_config",
    "Teacher": "dopd_vl.training.teachers",
    "dopd_loss": "dopd_vl.objectives.dopd_loss",
    "fused_dopd_loss": "dopd_vl.objectives.dopd_loss",
    "register_verifier": "dopd_vl.evaluation.verifiers",
}


def __getattr__(name: str) -> Any:
    # All of them bring in torch, the trainer TRL too; the command line's help must not wait for them.
    if name not in _HOMES:
        raise AttributeError(f"module 'dopd_vl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
