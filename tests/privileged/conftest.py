"""A small source with its troubles."""

import json
from pathlib import Path
from typing import Any

import pytest
from privileged_samples import noise


@pytest.fixture(scope="session")
def jsonl_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records.jsonl and images/: 40 records, of which 3 are bad and one repeats another."""
    root = tmp_path_factory.mktemp("world")
    images = root / "images"
    images.mkdir()
    rows: list[Any] = []
    for number in range(40):
        noise(seed=number).save(images / f"{number}.png")
        rows.append(
            {
                "key": f"row-{number}",
                "question": f"How many dots, in picture {number}?",
                "solution": number,
                "file": f"{number}.png",
                "objects": [{"label": "dot", "bbox": [1, 2, 20, 30]}],
            }
        )
    (images / "7.png").write_bytes((images / "7.png").read_bytes()[:500])  # truncated
    rows[11]["file"] = "../records.jsonl"  # leaves the folder
    rows[19] = {**rows[18], "key": "row-19"}  # the same question and picture
    lines = [json.dumps(row) for row in rows]
    lines[23] = '{"key": "row-23", '
    (root / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
