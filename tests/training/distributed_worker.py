"""A short DOPD training with rollouts that chance has no part in, in one process or as one of several."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.objectives import Dopd, Opd
from dopd_vl.training.run import load_examples

ROLLOUTS = 8  # of a step, over all ranks and slices


def allow_fsdp_on_a_cpu() -> None:
    """Accelerate shards on accelerators alone; torch itself shards on a CPU as well."""
    initialise = AcceleratorState.__init__

    def initialise_with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = initialise_with_fsdp  # type: ignore[method-assign]


def learn(models: Path, data: Path, output: Path, world: str, processes: int) -> None:
    torch.set_num_threads(1)
    allow_fsdp_on_a_cpu()
    config = DopdConfig(
        str(output / "run"),
        max_steps=2,
        per_device_train_batch_size=ROLLOUTS // processes // 2,
        gradient_accumulation_steps=2,
        num_generations=2,
        max_completion_length=6,
        top_k=1,  # rollouts are greedy
        learning_rate=1e-3,
        weight_decay=0.0,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=1,
        eval_max_completion_length=2,
        disable_tqdm=True,
        seed=3,
    )
    examples = load_examples(str(data))
    trainer = DopdTrainer(
        str(models / f"{world}-student"),
        str(models / f"{world}-teacher"),
        config,
        train_dataset=examples,
        eval_dataset=examples.select(range(5)),  # which two processes cannot share equally
        # One plan that needs nothing but scores of the policies, and one that projects the teacher again.
        objective=Dopd(top_k=16) if world == "text" else Opd(divergence="js", teacher_view="privileged"),
    )
    # Every third token ends a response, so that processes are not done with theirs at the same time.
    trainer.eos_token_ids += range(0, 640, 3)
    trainer.generation_config.eos_token_id = trainer.eos_token_ids
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, output / "model.safetensors")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        (output / "kind.json").write_text(json.dumps([type(trainer.model_wrapped).__name__, processes]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
