"""The trainer's arguments."""

from dataclasses import dataclass, field

import torch
from trl import DistillationConfig

from dopd_vl.core.projection import DEFAULT_CHUNK_SIZE
from dopd_vl.train_config import DEFAULT_VARIANT


@dataclass
class DopdConfig(DistillationConfig):
    """TRL's `DistillationConfig` with what privileged distillation adds.

    `beta` has no effect: the divergence is the objective's. `temperature` is that of sampling alone; distributions are
    compared at temperature 1. `bf16` defaults to on where there is a GPU and off elsewhere.
    """

    num_generations: int = field(default=1, metadata={"help": "Rollouts per prompt."})
    teacher_variant: str = field(
        default=DEFAULT_VARIANT, metadata={"help": "Variant of the privileged input that the teacher sees."}
    )
    student_variant: str = field(
        default=DEFAULT_VARIANT, metadata={"help": "Variant of the privileged input that the privileged student sees."}
    )
    learner_variant: str = field(
        default="none",
        metadata={
            "help": "Variant that the student sees when it rolls out and learns. A deployed student sees none: "
            "anything else is for the analysis of what comes of it."
        },
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longest prompt in tokens, of any view; a longer one is refused, never cut."}
    )
    scoring_batch_size: int | None = field(
        default=None, metadata={"help": "Sequences per scoring forward pass. Default: per_device_train_batch_size."}
    )
    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "Read a prompt once for all of its rollouts: in scoring, and in learning without gradient "
            "checkpointing. Not for models that keep a recurrent state, whatever this says."
        },
    )
    logits_chunk_size: int = field(
        default=DEFAULT_CHUNK_SIZE, metadata={"help": "Response tokens projected to the vocabulary at a time."}
    )
    logged_top_k: int = field(default=128, metadata={"help": "K of the logged Top-K mass of the policies."})
    offload_scores: bool = field(
        default=False,
        metadata={"help": "Keep Top-K entries and hidden states between scoring and learning in host memory."},
    )
    rollouts_to_keep: int = field(default=8, metadata={"help": "Rollouts kept, with their routing, at each log."})
    eval_variants: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "What the student sees in evaluations; the first one's accuracy is `eval_accuracy`."},
    )
    eval_max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest response in evaluations, tokens. Default: max_completion_length."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        if self.num_generations < 1:
            raise ValueError(f"num_generations={self.num_generations} must be at least 1")
        rollouts = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if rollouts % self.num_generations:
            raise ValueError(
                f"num_generations={self.num_generations} does not divide the {rollouts} rollouts of a step on one "
                "device (per_device_train_batch_size * gradient_accumulation_steps)"
            )
        super().__post_init__()
