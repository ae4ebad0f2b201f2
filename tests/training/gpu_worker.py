"""One step of every objective by the rules of a GPU (`tests/pseudo_cuda.py`)."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.objectives import OBJECTIVES
from dopd_vl.training.run import load_examples
from tests.pseudo_cuda import CUDA, counted, pseudo_cuda, to_gpu


def step_on_a_gpu(models: Path, data: Path, output: Path, world: str, objective: str, **settings: Any) -> None:
    """Rollouts, scores, a plan and two slices of learning in bf16, but for the backward pass.

    Writes the losses, where and how often the host waits while scores are made and a plan decided, and the same of each
    slice, with how many kernels it launches.
    """
    torch.set_num_threads(1)
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 12,
        "logits_chunk_size": 16,
        "report_to": "none",
        "use_cpu": True,
        "bf16": True,
        "seed": 3,
    }
    trainer = DopdTrainer(
        str(models / f"{world}-student"),
        str(models / f"{world}-teacher"),
        DopdConfig(str(output / "run"), **{**defaults, **settings}),
        train_dataset=load_examples(str(data)),
        objective=OBJECTIVES[objective](),
    )
    to_gpu(trainer.model)
    to_gpu(trainer.teacher_model)
    for state in (AcceleratorState, PartialState):
        state._shared_state["device"] = CUDA
    trainer.args.__dict__["_setup_devices"] = CUDA
    found: dict[str, Any] = {"losses": [], "slices": []}
    with pseudo_cuda():
        trainer.policies.copies.begin(trainer.models.bare("student"), None)
        trainer.model.train()
        batch = [trainer.train_dataset[i // 4] for i in range(8)]
        generate = trainer._generate

        def drawn(prompts: Any) -> Any:
            result = generate(prompts)
            scoring.waits.clear()
            return result

        trainer._generate = drawn  # type: ignore[method-assign]
        with counted() as scoring:
            trainer._prepare_inputs(batch)
        found["deciding"] = dict(scoring.waits)
        for slice_of_step in trainer._buffered_inputs:
            with counted() as learning:
                loss = trainer.compute_loss(trainer.model, slice_of_step)
            found["losses"].append(loss.item())
            found["slices"].append([learning.kernels, dict(learning.waits)])
    (output / f"{world}-{objective}.json").write_text(json.dumps(found))
