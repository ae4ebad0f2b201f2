"""What is known without a download: shapes of published models in `data/models`, accelerators in `data/gpus.yaml`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PreTrainedConfig

from dopd_vl.common.errors import UserError, nearest, one_line
from dopd_vl.common.resources import find_model, shipped
from dopd_vl.models import reading
from dopd_vl.planning.shapes import ModelShape, shape_of


@dataclass(frozen=True)
class Gpu:
    """An accelerator by its data sheet."""

    name: str
    tflops: float
    """dense, bf16"""
    memory_gb: float
    bandwidth_tb: float
    """TB/s"""


def known_models() -> dict[str, Path]:
    """Hub id -> its file in `data/models`."""
    files = sorted(shipped("data/models").glob("*.yaml"))
    return {yaml.safe_load(file.read_text(encoding="utf-8"))["id"]: file for file in files}


def published(file: Path) -> tuple[PreTrainedConfig, int]:
    """The configuration in a file of `data/models`, and the published number of parameters."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings: dict[str, Any] = dict(content["config"])
    return AutoConfig.for_model(settings.pop("model_type"), **settings), content["parameters"]


def model_config(name: str, key: str) -> PreTrainedConfig:
    """The configuration of a model folder, of `nano:NAME`, of a file such as `my-model.yaml`, or id in `data/models`.

    Args:
        key: the setting that names it, for the error.

    Raises:
        UserError: nothing is known of it.
    """
    path, known = find_model(name), known_models()
    if (Path(path) / "config.json").is_file():
        with reading(key, path):
            return AutoConfig.from_pretrained(path)
    try:
        if path.endswith(".yaml") and Path(path).is_file():
            return published(Path(path))[0]
        if path in known:
            return published(known[path])[0]
    except (KeyError, TypeError, ValueError, OSError, yaml.YAMLError) as error:
        raise UserError(f"{key}: {name!r} does not describe a model ({one_line(error)})") from error
    raise UserError(
        f"{key}: the shape of {name!r} is not known ({nearest(name, known)}); give a folder with its config.json, or a "
        f"YAML file with its fields as those in {shipped('data/models')}"
    )


def model_shape(name: str, key: str) -> ModelShape:
    """The shape of a model that `model_config` finds.

    Raises:
        UserError: nothing is known of it, or it is of a family that is not counted.
    """
    try:
        return shape_of(model_config(name, key), name)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {name!r}: {one_line(error)}") from error


def gpu_of(name: str) -> Gpu:
    """An accelerator of `data/gpus.yaml`.

    Raises:
        UserError: it is not there.
    """
    known = yaml.safe_load(shipped("data/gpus.yaml").read_text(encoding="utf-8"))
    if name not in known:
        raise UserError(f"gpu: unknown GPU {name!r}, {nearest(name, known)}; or give --tflops and --bandwidth")
    return Gpu(**known[name])
