"""Fields of TRL's configuration that only several ranks show (gloo, CPU)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.training.run import load_examples
from tests.training.distributed_worker import allow_fsdp_on_a_cpu
from tests.training.test_distributed import APART, run_in

DDP: dict[str, Any] = {
    "ddp_backend": "gloo",
    "ddp_bucket_cap_mb": 3,
    "ddp_broadcast_buffers": False,
    "ddp_find_unused_parameters": False,
    "log_level_replica": "critical",
}
FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
        "reshard_after_forward": False,
    },
}


def learn(models: Path, data: Path, output: Path, settings: dict[str, Any]) -> None:
    """Two steps, and what their model was wrapped in."""
    torch.set_num_threads(1)
    allow_fsdp_on_a_cpu()
    config = DopdConfig(
        str(output / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=1,
        max_completion_length=4,
        top_k=1,
        learning_rate=1e-3,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        **settings,
    )
    models_of = [str(models / f"text-{role}") for role in ("student", "teacher")]
    trainer = DopdTrainer(*models_of, config, train_dataset=load_examples(str(data)))
    trainer.train()
    wrapped: Any = trainer.model_wrapped
    names = ("broadcast_buffers", "find_unused_parameters", "bucket_bytes_cap")
    of_layers: Any = trainer.model.get_decoder().layers
    found = {
        "kind": type(wrapped).__name__,
        "layers": type(of_layers[0]).__name__,
        "backend": torch.distributed.get_backend(),
        "verbosity": transformers.utils.logging.get_verbosity(),
        "log": [row for row in trainer.state.log_history if "loss" in row],
        **{name: getattr(wrapped, name, None) for name in names},
    }
    (output / f"found-{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


@pytest.fixture
def ranks(nano_models: Path, text_data: Path, tmp_path: Path) -> Any:
    def run(name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        run_in(2, {}, learn, nano_models, text_data, folder, settings)
        return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]

    return run


def test_wrappers_are_told_what_the_fields_say_and_teach_the_same(ranks: Any) -> None:
    plain, ddp, fsdp = (ranks(name, settings) for name, settings in (("plain", {}), ("ddp", DDP), ("fsdp", FSDP)))
    assert [found["kind"] for found in (plain[0], ddp[0])] == ["DistributedDataParallel"] * 2
    names = ("broadcast_buffers", "find_unused_parameters")
    assert [plain[0][name] for name in names] == [True, True]
    assert [ddp[0][name] for name in names] == [False, False]
    assert ddp[0]["bucket_bytes_cap"] == 3 * 2**20 != plain[0]["bucket_bytes_cap"]
    assert [found["backend"] for found in ddp] == ["gloo", "gloo"]
    assert [found["verbosity"] for found in ddp] == [30, 50]
    assert fsdp[0]["kind"].startswith("FSDP")
    assert fsdp[0]["layers"].startswith("FSDP")
    for other in (ddp, fsdp):
        for ours, theirs in zip(other[0]["log"], plain[0]["log"], strict=True):
            for name in ("loss", "grad_norm", "gap/threshold", "entropy"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=APART), name
