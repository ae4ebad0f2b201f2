"""Small pictures and records for the tests of the privileged-information subsystem."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.commands import dopd_vl


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


@dataclass(frozen=True)
class Prepared:
    """What `dopd-vl prepare` left: its exit code, what it said, rows and reasons by id, and counts of findings."""

    code: int
    told: str
    rows: dict[str, dict[str, Any]]
    rejected: dict[str, str]
    found: dict[str, int]


def prepare_by_command(folder: Path, source: dict[str, Any], **settings: Any) -> Prepared:
    """`dopd-vl prepare` in `folder` with this source; files and folders of it are named relative to there."""
    config = {"source": source, "output": "out", "max_rejected_share": 1.0, "sample": 0, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    done = dopd_vl("prepare", "--config", "config.yaml", cwd=folder)
    output = folder / config["output"]
    rejected, audit = output / "rejected.jsonl", output / "audit.json"
    entries = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
    rows = [row for file in sorted(output.glob("data/*.parquet")) for row in pq.read_table(file).to_pylist()]
    return Prepared(
        done.returncode,
        " ".join((done.stdout + done.stderr).split()),
        {row["id"]: row for row in rows},
        {entry["id"]: entry["reason"] for entry in entries},
        json.loads(audit.read_text())["counts"]["findings"] if audit.exists() else {},
    )


def pixels_of(row: dict[str, Any], number: int = 0) -> np.ndarray:
    """An image of a prepared row."""
    return np.array(Image.open(io.BytesIO(row["images"][number]["bytes"])).convert("RGB"))


def boxes_of(row: dict[str, Any]) -> list[tuple[str, list[float]]]:
    return [(box["label"], box["bbox"]) for box in row["privileged"]["boxes"]]
