"""The CPU-size world: scenes of real handwriting, text problems, and tiny Qwen3 and Qwen3-VL models trained on them."""

from pathlib import Path

from dopd_vl.nano.digits import nano_data_folder
from dopd_vl.nano.source import NanoSource

__all__ = ["NanoSource", "model_folder", "nano_data_folder"]


def model_folder(name: str) -> Path:
    """A shipped model, e.g. `vision-teacher` or `text-learner` (docs/nano.md has them all): a Hugging Face folder.

    Raises:
        ValueError: no such model.
    """
    models = nano_data_folder() / "models"
    if not (models / name / "config.json").is_file():
        known = ", ".join(sorted(folder.parent.name for folder in models.glob("*/config.json"))) or "none"
        raise ValueError(f"no nano model {name!r} in {models} (there: {known})")
    return models / name
