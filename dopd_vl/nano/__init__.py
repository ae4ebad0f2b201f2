"""The CPU-size world: scenes of real handwriting, text problems, and tiny Qwen3 and Qwen3-VL models trained on them."""

from dopd_vl.nano.source import NanoSource

__all__ = ["NanoSource"]
