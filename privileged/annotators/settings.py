"""The settings of annotation, as a dataclass that a YAML file fills."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dopd_vl.common.configuration import check_between, check_choice, existing_path
from dopd_vl.common.errors import ConfigurationError
from privileged.model_settings import BudgetConfig, ModelConfig, SamplingConfig

__all__ = ["AnnotateConfig", "BudgetConfig", "SamplingConfig"]

PART_NAMES = ("hints", "hints_executed", "hint_summary", "caption", "boxes", "wrong_hint")
"""What can be asked for. `caption` and `boxes` are asked of records with images only."""

IMAGE_PARTS = ("caption", "boxes")
COORDINATES = ("relative_1000", "absolute", "relative_1")
"""What the numbers of a box may be: thousandths of the image's sides, pixels, shares of the sides."""


@dataclass
class AnnotateConfig(ModelConfig):
    """Who makes the privileged parts that a source lacks, and how.

    Args:
        kind: Who answers: "endpoint" (any server that speaks the OpenAI API), "local" (a transformers model),
            "function" (one of yours that writes replies, named in `model` as `module:function`) or "detector" (one that
            finds boxes).
        cache: The folder that keeps every reply. By default it is the output's name with ".replies" at its end.
        parts: The parts to make, of hints, hints_executed, hint_summary, caption, boxes, wrong_hint.
        detector: The detector as `module:function`; with another kind it makes the boxes, and the model makes the rest.
        coordinates: What the numbers in a model's boxes are: relative_1000 (thousandths of the image's sides, which is
            what the prompt asks for), absolute (pixels), relative_1 (shares of the sides, 0 to 1), or auto: what the
            first replies show, which is told.
        optional: Parts without which a record is kept all the same. A record that lacks another part is set aside.
        replace: Also make parts that the source brings.
        recheck: Show each part to the model again, and drop the poor ones.
        tries: A part is asked for so often before a bad or poor reply is final.
        prompts: A folder with prompts of your own; what it lacks is taken from those that ship.
        dry_run: Print what the annotation would cost, and ask for nothing.
    """

    KEY: ClassVar[str] = "annotate"
    KINDS: ClassVar[tuple[str, ...]] = (*ModelConfig.KINDS, "function", "detector")

    parts: list[str] = field(default_factory=lambda: ["hints"])
    detector: str | None = None
    coordinates: str = "relative_1000"
    optional: list[str] = field(default_factory=list)
    replace: bool = False
    recheck: bool = True
    tries: int = 2
    prompts: str | None = None
    dry_run: bool = False

    def check(self) -> None:
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        super().check()
        _check_parts(self.parts, PART_NAMES, "annotate.parts")
        if not self.parts:
            raise ConfigurationError(f"annotate.parts: name at least one of {', '.join(PART_NAMES)}")
        _check_parts(self.optional, self.parts, "annotate.optional")
        if self.kind == "detector" and (self.detector is None or self.parts != ["boxes"]):
            raise ConfigurationError("annotate.parts: a detector alone makes [boxes], and annotate.detector names it")
        functions = {"detector": self.detector, "model": (self.model or "") if self.kind == "function" else None}
        for key, name in functions.items():
            if name is not None and name.count(":") != 1:
                raise ConfigurationError(f"annotate.{key}: {name!r} must have the form module:function")
        check_choice(self.coordinates, (*COORDINATES, "auto"), "annotate.coordinates")
        if self.prompts is not None:
            existing_path(self.prompts, "annotate.prompts", "folder")
        check_between(self.tries, 1, math.inf, "annotate.tries")

    def content(self) -> dict[str, Any]:
        """The settings that decide what the annotations are, for fingerprints. Prompts count by their text."""
        settings = super().content()
        for key in ("dry_run", "prompts"):
            del settings[key]
        if (
            self.coordinates == AnnotateConfig.coordinates
        ):  # sets that were begun before it could be chosen are taken up
            del settings["coordinates"]
        return settings


def _check_parts(parts: list[str], known: Any, key: str) -> None:
    for part in parts:
        check_choice(part, known, key)
    if len(set(parts)) < len(parts):
        raise ConfigurationError(f"{key}: names a part twice")
