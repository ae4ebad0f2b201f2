"""What the rollouts that are kept for the report cost: their share of a step of the process that keeps them.

    python benchmarks/kept_rollouts.py                                     # fp32 on the CPU
    python benchmarks/kept_rollouts.py --device cuda --bf16 --rollouts 16

The models of `step.py`'s `qwen3`, cut to two layers but with the whole vocabulary, on made-up rollouts of one length;
what is kept is written at each step, as a run folder has it. The models' last norm is scaled so that a few tokens are
likely at each place, and what is written is decoded by a tokenizer of as many tokens. A model with all of its layers
takes longer for everything but this.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import VERSIONS, describe
from step import Clock, StepEnds, examples_of, models_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.run_folder import folder as run_folder
from dopd_vl.run_folder.kept_rollouts import KeptRollouts
from dopd_vl.training import trainer as trainer_module

KEPT = "kept rollouts"


class WholeSteps(StepEnds):
    """A step ends where the next one begins: what is logged belongs to it."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.start:
            super().on_step_end()
        super().on_step_begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_step_end()


@contextmanager
def watch_kept(clock: Clock) -> Iterator[None]:
    """While it lasts, the time of all that is done for kept rollouts is counted."""
    names = [(trainer_module, "keep_rollouts"), (KeptRollouts, "learned"), (run_folder, "rollout_records")]
    before = [getattr(owner, name) for owner, name in names]
    for owner, name in names:
        clock.wrap(owner, name, KEPT)
    try:
        yield
    finally:
        for (owner, name), original in zip(names, before, strict=True):
            setattr(owner, name, original)


def tokenizer_of(vocabulary: int) -> Any:
    """A byte-level tokenizer of made-up words, which decodes as Qwen's does."""
    letters, draw = sorted(pre_tokenizers.ByteLevel.alphabet()), random.Random(0)
    words = dict.fromkeys(letters)
    while len(words) < vocabulary:
        words["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8)))] = None
    made = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@contextmanager
def decode_with(tokenizer: Any) -> Iterator[None]:
    """While it lasts, what is written of kept rollouts is decoded by another tokenizer than their prompts."""
    records = run_folder.rollout_records

    def decoded(kept: Any, renderer: Any, images: Path) -> Any:
        views = SimpleNamespace(tokenizer=tokenizer)
        return records(
            kept,
            SimpleNamespace(views=views, variant_of=renderer.variant_of, with_another=renderer.with_another),
            images,
        )

    run_folder.rollout_records = decoded
    try:
        yield
    finally:
        run_folder.rollout_records = records


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Seconds of a step and of the kept rollouts in it, the median of the steps after the first."""
    student, teacher = models_of("qwen3", Path(folder))
    settings: dict[str, Any] = {
        "output_dir": f"{folder}/run",
        "max_steps": args.steps + 1,
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": args.rollouts // args.batch,
        "num_generations": args.rollouts,
        "max_completion_length": args.tokens,
        "rollouts_to_keep": args.keep,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": args.device == "cpu",
        "bf16": args.bf16,
    }
    records = run_folder.RunFolder(Path(folder) / "run")
    trainer: Any = DopdTrainer(
        student,
        teacher,
        DopdConfig(**settings),
        train_dataset=examples_of("qwen3", args.steps + 1),
        callbacks=[records],
    )
    records.attach(trainer)
    (Path(folder) / "run").mkdir(exist_ok=True)
    for model in (trainer.model, trainer.teacher_model):
        model.model.norm.weight.data *= 5
    vocabulary = trainer.model.config.vocab_size
    generator = torch.Generator().manual_seed(0)

    def rollouts(prompts: list[list[int]], images: Any, fields: Any) -> list[list[int]]:
        # As in text a few tokens make up most of it.
        drawn = vocabulary ** torch.rand(len(prompts), args.tokens, generator=generator)
        return (drawn.long() - 1).clamp(0, vocabulary - 1).tolist()

    trainer._generate_single_turn = rollouts
    clock = Clock(args.device)
    trainer.add_callback(WholeSteps(clock))
    with watch_kept(clock), decode_with(tokenizer_of(vocabulary)):
        trainer.train()
    counted = clock.steps[1:]
    step = statistics.median(sum(parts.values()) for parts in counted)
    kept = statistics.median(parts[KEPT] for parts in counted)
    return {"step_seconds": step, "kept_seconds": kept, "share": kept / step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=1, help="that count, after one that does not")
    parser.add_argument("--rollouts", type=int, default=8, help="of a step, all of one prompt")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048, help="of a response")
    parser.add_argument("--keep", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(args, folder)
    print(json.dumps({"machine": describe(args.device, args.threads, "bf16" if args.bf16 else "fp32"), **VERSIONS}))
    print(
        f"{args.keep} of {args.rollouts} rollouts of {args.tokens} tokens kept: {row['kept_seconds']:.2f} of "
        f"{row['step_seconds']:.1f} seconds, {row['share']:.1%} of the step (without generating)"
    )


if __name__ == "__main__":
    main()
