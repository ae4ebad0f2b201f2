"""With bf16 every forward pass is computed in it, and nothing that is made of logits."""

from typing import Any

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from dopd_vl.core.projection import Projector
from dopd_vl.objectives import Dopd, Opd
from tests.conftest import MakeTrainer

BACKBONES: dict[str, Any] = {"text": Qwen3Model, "vision": Qwen3VLModel}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("world", BACKBONES)
def test_bf16_is_of_forward_passes_alone(
    world: str, checkpointing: bool, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: set[tuple[bool, bool, bool]] = set()
    products: set[tuple[bool, torch.dtype | None]] = set()
    forward, logits = BACKBONES[world].forward, Projector.logits

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.add((self.config is teacher.config, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return forward(self, *args, **kwargs)

    def projected(self: Projector, rows: Any) -> torch.Tensor:
        products.add((torch.is_autocast_enabled("cpu"), self.dtype))
        return logits(self, rows)

    # The copy and the teacher score, the teacher's head is projected again while the student learns.
    objective = Dopd(top_k=16) if world == "text" else Opd(divergence="js", teacher_view="privileged")
    settings = {"bf16": True, "gradient_accumulation_steps": 2, "gradient_checkpointing": checkpointing}
    trainer = make_trainer(world, objective, **settings)
    teacher = trainer.models.bare("teacher").base_model
    monkeypatch.setattr(BACKBONES[world], "forward", watched)
    monkeypatch.setattr(Projector, "logits", projected)
    trainer.evaluate(trainer.train_dataset.select(range(2)))
    trainer.train()
    # (of the teacher, with a gradient, in bf16)
    assert passes == {(True, False, True), (False, False, True), (False, True, True)}
    assert products == {(False, torch.bfloat16)}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_without_bf16_nothing_is_rounded(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    assert trainer.models.compute_dtype is None
    with trainer.models.precision():
        assert not torch.is_autocast_enabled("cpu")
