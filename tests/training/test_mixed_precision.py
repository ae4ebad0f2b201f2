"""With bf16 every forward pass is computed in it, and nothing that is made of logits."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from dopd_vl.core.projection import Projector
from dopd_vl.models import cast_once
from dopd_vl.objectives import Dopd, Opd
from dopd_vl.train_config import DataSettings, LoopSettings, ModelSettings, TrainConfig
from dopd_vl.training.run import run_training
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


@pytest.mark.parametrize("world", BACKBONES)
def test_responses_are_drawn_from_weights_that_are_cast_once(
    world: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of an autocast that casts every weight anew for each token, and fp32 weights are learned from."""
    drawn: list[list[Any]] = []
    dtypes = set()
    for once in (True, False):
        trainer = make_trainer(world, Opd(), bf16=True, max_steps=1)
        generate, said = type(trainer.model).generate, []
        if not once:
            monkeypatch.setattr("dopd_vl.training.sharding.cast_once", lambda model, dtype: nullcontext())

        def watched(
            self: Any, *args: Any, once: bool = once, generate: Any = generate, said: list[Any] = said, **kwargs: Any
        ) -> Any:
            dtypes.add(
                (once, {p.dtype for p in self.parameters() if p.ndim == 2 and p is not _embedding(self)} >= BF16)
            )
            result = generate(self, *args, **kwargs)
            said.append(getattr(result, "sequences", result).tolist())
            return result

        with monkeypatch.context() as patch:
            patch.setattr(type(trainer.model), "generate", watched)
            trainer.evaluate(trainer.train_dataset.select(range(2)))
            trainer.train()
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        drawn.append(said)
    assert dtypes == {(True, True), (False, False)}
    assert len(drawn[0]) >= 2
    assert drawn[0] == drawn[1]


BF16 = {torch.bfloat16}


def _embedding(model: Any) -> Any:
    return model.get_input_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_cast_once_come_back(tied: bool, nano_models: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(nano_models / "text-student", tie_word_embeddings=tied)
    model.lm_head.weight.requires_grad_(False)
    before = dict(model.named_parameters(remove_duplicate=False))
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        with cast_once(model, torch.bfloat16):
            inside = dict(model.named_parameters(remove_duplicate=False))
            assert inside["lm_head.weight"].dtype == torch.bfloat16
            assert inside["model.embed_tokens.weight"] is before["model.embed_tokens.weight"]
            assert torch.equal(model(ids).logits, expected)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is before[name] for name in [*before, *after])
    with cast_once(model, None):
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_run_on_a_cpu_can_be_in_bf16(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    models = ModelSettings(str(nano_models / "text-student"), str(nano_models / "text-teacher"))
    loop = LoopSettings(
        bf16=True, max_steps=1, per_device_train_batch_size=2, num_generations=1, max_completion_length=4
    )
    config = TrainConfig(str(tmp_path / "run"), model=models, data=DataSettings(str(text_data)), training=loop)
    run_training(config, console=Console(quiet=True))
    weights = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
