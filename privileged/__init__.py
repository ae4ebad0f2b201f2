"""Privileged information: what a teacher may see and the deployed student never will.

This package prepares privileged datasets and renders them into the variants that a run compares. It imports no torch
and nothing of `dopd_vl`.
"""

from .errors import ConfigError, ImageError, MissingPrivilege, PrepareError, PrivilegedError, RecordError
from .render import RenderedPrompt
from .variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "ConfigError",
    "ImageError",
    "MissingPrivilege",
    "PrepareError",
    "PrivilegedError",
    "RecordError",
    "RenderedPrompt",
    "Variant",
]
