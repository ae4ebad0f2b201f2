"""Privileged information: what a teacher may see and the deployed student never will.

This package prepares privileged datasets and renders them into the variants that a run compares. It imports no torch,
and of `dopd_vl` nothing but `dopd_vl.common`.

    from privileged import VARIANTS, load_privileged

    example = load_privileged("runs/data/digits")[0]
    prompt = VARIANTS["hints"].render(example)      # messages and images
"""

from dopd_vl.common.errors import ConfigurationError, ImageError, MissingPrivilege, PrepareError, RecordError, UserError
from privileged.dataset import load_privileged, without_privilege
from privileged.rendering.render import RenderedPrompt
from privileged.rendering.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "ConfigurationError",
    "ImageError",
    "MissingPrivilege",
    "PrepareError",
    "RecordError",
    "RenderedPrompt",
    "UserError",
    "Variant",
    "load_privileged",
    "without_privilege",
]
