"""A trainer on the nano models, set up for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.objectives import Objective
from dopd_vl.training.run import load_examples

MakeTrainer = Callable[..., DopdTrainer]


@pytest.fixture
def make_trainer(nano_models: Path, vision_data: Path, text_data: Path, tmp_path: Path) -> MakeTrainer:
    def make(
        world: str = "vision", objective: Objective | None = None, dataset: Any = None, **settings: Any
    ) -> DopdTrainer:
        data = {"vision": vision_data, "text": text_data}[world]
        defaults = {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "seed": 3,
        }
        extra = {"peft_config": settings.pop("peft_config")} if "peft_config" in settings else {}
        return DopdTrainer(
            str(nano_models / f"{world}-student"),
            str(nano_models / f"{world}-teacher"),
            DopdConfig(str(tmp_path / "run"), **{**defaults, **settings}),
            train_dataset=load_examples(str(data)) if dataset is None else dataset,
            objective=objective,
            **extra,
        )

    return make
