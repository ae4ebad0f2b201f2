"""supervision, imported without a word."""

from __future__ import annotations

import warnings
from types import ModuleType


def import_supervision() -> ModuleType:
    """The module. Where OpenCV is missing its first import warns of that; numpy then draws and reads the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import supervision
    return supervision
