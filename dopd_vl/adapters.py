"""Folders that hold LoRA adapters (peft) and no whole model, such as the student of a run that trained adapters."""

import json
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from dopd_vl.errors import UserError


def base_of_adapters(path: str, key: str) -> str | None:
    """The model that a folder's adapters were trained on, a folder or a hub id; None where `path` is no such folder.

    Raises:
        UserError: the folder does not say, or its adapters are no safetensors; the message begins with `key`.
    """
    described = Path(path) / CONFIG_NAME
    if not described.is_file():
        return None
    try:
        base = json.loads(described.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(f"{key}: {described} does not name the model that its adapters belong to")
    if not (Path(path) / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise UserError(f"{key}: {path} holds no {SAFETENSORS_WEIGHTS_NAME}; other formats can run code when read")
    return base
