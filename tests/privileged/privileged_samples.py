"""Small pictures and records for the tests of the privileged-information subsystem."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """A picture in which every pixel differs from its neighbours, so that any change of one shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def raw_record(**changes: Any) -> dict[str, Any]:
    record = {
        "id": "r-1",
        "prompt": "What is in the picture?",
        "images": [noise()],
        "answer": "a seven",
        "task": "exact",
        "privileged": {
            "hints": ["Look at the left side."],
            "hints_executed": ["On the left side is a seven."],
            "hint_summary": "Look left.",
            "caption": "Digits on noise.",
            "boxes": [{"label": "7", "bbox": [4, 4, 20, 24], "caption": "slanted"}],
            "wrong_hint": "Look right.",
        },
    }
    record.update(changes)
    return record


def jsonl_settings(root: Path, output: Path, **changes: Any) -> Any:
    from privileged.prepare.prepare import PrepareConfig, SourceConfig

    columns = {
        "id": "key",
        "prompt": "question",
        "answer": "solution",
        "images": "file",
        "privileged.boxes": "objects",
    }
    options = {"path": str(root / "records.jsonl"), "images": str(root / "images"), "columns": columns}
    source = SourceConfig("jsonl", options, default_task="number")
    settings = {"source": source, "output": str(output), "shard_size": 9, "max_rejected_share": 0.2}
    return PrepareConfig(**{**settings, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
