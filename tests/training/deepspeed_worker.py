"""`dopd-vl` on a CPU under DeepSpeed; started by accelerate launch. Its arguments are the command's, or `head`'s.

Accelerate leaves DeepSpeed out wherever it is told to use a CPU; DeepSpeed itself runs on one (DS_ACCELERATOR=cpu,
gloo). That choice of accelerate's is all that is replaced here.
"""

import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from peft import LoraConfig

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.cli import main
from dopd_vl.common.files import write_json
from dopd_vl.objectives import Opsd
from dopd_vl.training.run import load_examples


def allow_deepspeed_on_a_cpu() -> None:
    def gloo(self: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    finish = DopdConfig.__post_init__

    def finish_without_use_cpu(self: DopdConfig) -> None:
        self.use_cpu = False
        finish(self)

    PartialState._prepare_backend = gloo  # type: ignore[method-assign]
    DopdConfig.__post_init__ = finish_without_use_cpu  # type: ignore[method-assign]


def shard_all() -> None:
    """DeepSpeed leaves small weights whole, and those of the tests are small."""
    finish = DeepSpeedPlugin.__post_init__

    def finish_without_exceptions(self: DeepSpeedPlugin, *args: Any) -> None:
        finish(self, *args)
        self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    DeepSpeedPlugin.__post_init__ = finish_without_exceptions  # type: ignore[method-assign]


def head(student: str, data: str, output: str) -> None:
    """Two steps of a student whose head learns beside its adapters, and that the base with its own head teaches."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = DopdConfig(
        output,
        max_steps=2,
        per_device_train_batch_size=4 // processes,
        gradient_accumulation_steps=2,
        num_generations=2,
        max_completion_length=6,
        top_k=1,
        learning_rate=1e-2,
        save_strategy="no",
        logging_steps=1,
        gradient_checkpointing=False,
        report_to="none",
        use_cpu=True,
    )
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    rows = load_examples(data)
    trainer = DopdTrainer(student, None, config, train_dataset=rows, objective=Opsd(), peft_config=lora)
    trainer.train()
    if trainer.accelerator.is_main_process:
        learning = trainer.models.bare("student").get_output_embeddings().weight
        found = {"shape": list(learning.shape), "log": [row for row in trainer.state.log_history if "loss" in row]}
        write_json(Path(f"{output}.json"), found)


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        allow_deepspeed_on_a_cpu()
    if sys.argv[1] == "head":
        shard_all()
        sys.exit(head(*sys.argv[2:]))
    sys.exit(main())
