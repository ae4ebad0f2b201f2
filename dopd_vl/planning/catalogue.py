"""What is known without a download: shapes of published models in `data/models`, accelerators in `data/gpus.yaml`."""

import functools
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
    memory_gb: int
    """by its name"""
    memory_gib: float
    """what PyTorch finds of it, in GiB"""
    bandwidth_tb: float
    """TB/s"""

    @property
    def bytes(self) -> int:
        """What a process can have of its memory."""
        return int(self.memory_gib * 2**30)


@functools.cache
def known_models() -> dict[str, Path]:
    """Hub id -> its file in `data/models`."""
    files = sorted(shipped("data/models").glob("*.yaml"))
    return {yaml.safe_load(file.read_text(encoding="utf-8"))["id"]: file for file in files}


def published(file: Path) -> tuple[PreTrainedConfig, int]:
    """The configuration in a file of `data/models`, and the published number of the parameters that are loaded."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings: dict[str, Any] = dict(content["config"])
    loaded = content["parameters"] - content.get("not_loaded", 0)
    return AutoConfig.for_model(settings.pop("model_type"), **settings), loaded


@functools.cache
def model_config(name: str, key: str) -> PreTrainedConfig:
    """The configuration of a model folder, of its `config.json`, of `nano:NAME`, of a file such as `my-model.yaml`, or
    of an id in `data/models`.

    Args:
        key: the setting that names it, for the error.

    Raises:
        UserError: nothing is known of it.
    """
    path, known = find_model(name), known_models()
    described = (Path(path) / "config.json").is_file() or (path.endswith(".json") and Path(path).is_file())
    if described:
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
        f"{key}: the shape of {name!r} is not known ({nearest(name, known)}); give its config.json, a folder that "
        f"has one, or a YAML file with its fields as those in {shipped('data/models')}"
    )


@functools.cache
def model_shape(name: str, key: str) -> ModelShape:
    """The shape of a model that `model_config` finds.

    Raises:
        UserError: nothing is known of it, or it is no causal language model.
    """
    config = model_config(name, key)
    with reading(key, name):
        return shape_of(config, name)


def gpu_of(name: str, key: str) -> Gpu:
    """An accelerator of `data/gpus.yaml`.

    Args:
        key: the setting that names it, for the error.

    Raises:
        UserError: it is not there.
    """
    known = yaml.safe_load(shipped("data/gpus.yaml").read_text(encoding="utf-8"))
    if name not in known:
        instead = "GB, e.g. 8x80" if key == "gpus" else "--tflops and --bandwidth"
        raise UserError(f"{key}: unknown GPU {name!r}, {nearest(name, known)}; or give {instead}")
    return Gpu(**known[name])
