"""A student for others to use: adapters merged into their base, weights in one precision, whole or not there at all."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import make_folder, writing_to
from dopd_vl.common.run_layout import CARD_FILE, FACTS_FILE
from dopd_vl.evaluation.run import load_model
from dopd_vl.models import base_of_adapters
from dopd_vl.run_folder.checkpoints import mark_whole, read_mark

_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Tokenizer, processor and chat template."""
_NOT_BESIDE_WEIGHTS = ("adapter_config.json", FACTS_FILE, "trainer_state.json", "*.safetensors.index.json")


def export_student(source: Path, output: Path, dtype: str = "bfloat16", trust_remote_code: bool = False) -> None:
    """Write a student as one model in safetensors, with its tokenizer, processor and card.

    Adapters are merged in float32, and the sum is rounded once.

    Args:
        source: folder of a whole model, or of adapters whose base can be found.
        output: a folder that is not there yet.
        dtype: of the floating-point weights, e.g. "bfloat16".

    Raises:
        UserError: `source` is no whole student, or `output` is there already or cannot be written; nothing is left.
    """
    if not source.is_dir():
        raise UserError(f"model: no folder {source}")
    if (source / FACTS_FILE).exists() and read_mark(source, FACTS_FILE) is None:
        raise UserError(f"model: {source} is not as the run saved it ({FACTS_FILE} names other content)")
    if output.exists():
        raise UserError(f"output: {output} is there already; give another folder")
    merged = base_of_adapters(str(source), "model") is not None
    model: Any = load_model(str(source), "float32", trust_remote_code)[0]
    if merged:
        model = model.merge_and_unload()
    partial = output.with_name(f".{output.name}.partial")
    with writing_to(output, "output"):
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial, "output")
        try:
            for file in sorted({file for pattern in _BESIDE_WEIGHTS for file in source.glob(pattern)}):
                if not any(file.match(pattern) for pattern in _NOT_BESIDE_WEIGHTS):
                    shutil.copyfile(file, partial / file.name)
            model.to(getattr(torch, dtype)).save_pretrained(partial)
            if (source / CARD_FILE).exists():
                card = (source / CARD_FILE).read_text(encoding="utf-8")
                (partial / CARD_FILE).write_text(_card_of_export(card, dtype, merged), encoding="utf-8")
            facts = read_mark(source, FACTS_FILE) or {}
            kept = {name: value for name, value in facts.items() if name != "files"}
            mark_whole(partial, {**kept, "dtype": dtype, "merged": merged}, FACTS_FILE)
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def convert_weights(folder: Path, dtype: str) -> None:
    """Round the floating-point tensors of every safetensors file in a saved model to `dtype`, one file at a time."""
    kind, total = getattr(torch, dtype), 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata()
        tensors = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        total += sum(tensor.nbytes for tensor in tensors.values())
        rounded = file.with_name(f".{file.name}.tmp")
        save_file(tensors, rounded, metadata)
        rounded.replace(file)
    for name, put in (("config.json", {"dtype": dtype}), ("model.safetensors.index.json", {})):
        described = folder / name
        if described.exists():
            content = {**json.loads(described.read_text(encoding="utf-8")), **put}
            if "metadata" in content:
                content["metadata"]["total_size"] = total
            described.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _card_of_export(card: str, dtype: str, merged: bool) -> str:
    """The student's card, which says what became of its weights."""
    told = f"Its weights are {dtype} here" + (", with its adapters merged into the base model." if merged else ".")
    card = re.sub(r"^library_name: peft$", "library_name: transformers", card, count=1, flags=re.MULTILINE)
    head, title, rest = re.split(r"(^# .*\n)", card, maxsplit=1, flags=re.MULTILINE)
    return f"{head}{title}\n{told}\n{rest}"
