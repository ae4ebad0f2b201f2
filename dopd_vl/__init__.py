"""dopd-vl: on-policy distillation of Qwen3 and Qwen3-VL students with privileged information (arXiv 2606.30626)."""

from typing import TYPE_CHECKING, Any

from dopd_vl.common.version import __version__

if TYPE_CHECKING:
    from dopd_vl.objectives.dopd import DopdSettings
    from dopd_vl.objectives.dopd_loss import dopd_loss, fused_dopd_loss
    from dopd_vl.training.trainer import DopdConfig, DopdTrainer

__all__ = ["DopdConfig", "DopdSettings", "DopdTrainer", "__version__", "dopd_loss", "fused_dopd_loss"]


def __getattr__(name: str) -> Any:
    # These bring in torch, and the trainer transformers and TRL; the command line's help must not wait for them.
    if name in ("DopdConfig", "DopdTrainer"):
        from dopd_vl.training import trainer

        return getattr(trainer, name)
    if name == "DopdSettings":
        from dopd_vl.objectives.dopd import DopdSettings

        return DopdSettings
    if name in ("dopd_loss", "fused_dopd_loss"):
        from dopd_vl.objectives import dopd_loss

        return getattr(dopd_loss, name)
    raise AttributeError(f"module 'dopd_vl' has no attribute {name!r}")
