"""Whole steps by the rules of a GPU: no tensor on the wrong device, and few waits of the host."""

import json
import math
from pathlib import Path

import pytest

from dopd_vl.objectives import OBJECTIVES
from tests.commands import Fork
from tests.training.gpu_worker import step_on_a_gpu


@pytest.mark.parametrize("world", ["text", "vision"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_stays_on_its_device(
    objective: str, world: str, nano_models: Path, text_data: Path, vision_data: Path, tmp_path: Path
) -> None:
    data = {"text": text_data, "vision": vision_data}[world]
    result = Fork(step_on_a_gpu, nano_models, data, tmp_path, world, objective).result(200)
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads((tmp_path / f"{world}-{objective}.json").read_text())
    print(
        "COUNTS",
        world,
        objective,
        found["step"][0],
        sum(found["step"][1].values()),
        [(k, sum(w.values()), {n: c for n, c in w.items()}) for k, w in found["slices"]][:1],
    )
    assert len(found["losses"]) == 2
    assert all(math.isfinite(loss) for loss in found["losses"])
