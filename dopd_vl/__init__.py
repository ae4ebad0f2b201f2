"""dopd-vl: on-policy distillation of Qwen3 and Qwen3-VL students with privileged information (arXiv 2606.30626)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dopd_vl.training.trainer import DopdConfig, DopdTrainer

__version__ = "0.1.0"
__all__ = ["DopdConfig", "DopdTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    # The trainer brings in torch, transformers and TRL; the command line's help must not wait for them.
    if name in ("DopdConfig", "DopdTrainer"):
        from dopd_vl.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'dopd_vl' has no attribute {name!r}")
