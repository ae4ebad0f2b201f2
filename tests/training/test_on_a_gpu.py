"""Whole steps by the rules of a GPU: no tensor on the wrong device, few waits of the host, few kernels."""

import json
import math
from pathlib import Path

import pytest

from dopd_vl.objectives import OBJECTIVES
from dopd_vl.objectives.base import Requirements
from tests.commands import Fork
from tests.training.gpu_worker import step_on_a_gpu

CASES = [
    (world, name)
    for world in ("text", "vision")
    for name, objective in OBJECTIVES.items()
    if world == "vision" or not Requirements.of(objective()).needs_images
]
THEIRS = ("training/policies.py", "training/prompt_sharing.py", "training/vision_features.py", "elsewhere")
"""lines that call a backbone, which waits for its own reasons, and what a step looks up of its images"""


def of_ours(waits: dict[str, int]) -> dict[str, int]:
    return {line: count for line, count in waits.items() if not line.rpartition(" at ")[2].startswith(THEIRS)}


@pytest.mark.parametrize(("world", "objective"), CASES)
def test_a_step_stays_on_its_device(
    world: str, objective: str, nano_models: Path, text_data: Path, vision_data: Path, tmp_path: Path
) -> None:
    data = {"text": text_data, "vision": vision_data}[world]
    result = Fork(step_on_a_gpu, nano_models, data, tmp_path, world, objective).result(200)
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads((tmp_path / f"{world}-{objective}.json").read_text())
    assert len(found["losses"]) == 2
    assert all(math.isfinite(loss) for loss in found["losses"])
    assert sum(of_ours(found["deciding"]).values()) <= 40, of_ours(found["deciding"])
    for kernels, waits in found["slices"]:
        assert sum(of_ours(waits).values()) <= 6, of_ours(waits)
        assert kernels <= (2400 if objective == "dapd" else 1600)  # six terms over the whole vocabulary
