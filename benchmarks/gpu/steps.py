"""Whole optimizer steps of vanilla OPD and of DOPD by their parts, and responses drawn, on Qwen3-VL's true shapes."""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from kept_rollouts import KEPT, WholeSteps, decode_with, tokenizer_of, watch_kept
from step import Clock, examples_of
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration

from benchmarks.gpu.losses import GIB
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.table import Rows
from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.common.resources import find_model
from dopd_vl.evaluation.accuracy import generate
from dopd_vl.objectives import Dopd, Opd
from dopd_vl.planning.catalogue import known_models, published
from dopd_vl.run_folder.folder import RunFolder
from dopd_vl.training import trainer as trainer_module
from dopd_vl.views import processor_for

GROUP = 4
PIXELS = 1024 * 1024
"""of each image: 1,024 tokens"""
PARTS = (
    "views",
    "scoring: teacher",
    "scoring: student",
    "plan",
    "learning, forward",
    "learning, backward",
    "optimizer",
)
PARTS = (*PARTS, KEPT, "other")
MODELS = {"student": "Qwen/Qwen3-VL-2B-Instruct", "teacher": "Qwen/Qwen3-VL-8B-Instruct"}


def steps(sizes: Sizes, rows: Rows) -> None:
    """Seconds of a step on made-up rollouts, part by part, each part until the GPU is done with it."""
    models = {role: model_of(sizes, role) for role in MODELS}
    for role, model in models.items():
        rows.add(role, sum(weight.numel() for weight in model.parameters()) / 1e9, "B parameters")
    took = {}
    for name, objective in (("vanilla OPD", Opd()), ("DOPD", Dopd(top_k=sizes.top_k))):
        with tempfile.TemporaryDirectory() as folder:
            counted, losses, peak = train(sizes, models, objective, Path(folder))
        took[name] = statistics.median(sum(parts.values()) for parts in counted)
        rows.add(f"{name}: a step of {len(sizes.responses)} rollouts, without drawing them", took[name], "s")
        for part in PARTS:
            seconds = statistics.median(parts.get(part, 0.0) for parts in counted)
            if part == KEPT:
                share = seconds / took[name]
                rows.add(f"{name}: {part}, share of the step", share, at_most=sizes.of_time(0.02))
            rows.add(f"{name}: {part}", seconds, "s")
        rows.add(f"{name}: peak", peak / GIB, "GiB")
        rows.add(f"{name}: losses", ", ".join(f"{value:.4g}" for value in losses))
        models["student"].zero_grad(set_to_none=True)
        gc.collect()
    ratio = took["DOPD"] / took["vanilla OPD"]
    rows.add("DOPD / vanilla OPD, without drawing rollouts", ratio, at_most=sizes.of_time(1.2))


def generation(sizes: Sizes, rows: Rows) -> None:
    """Milliseconds a token of greedy responses by transformers, which evaluations are drawn with."""
    processor, student = processor_of(sizes), model_of(sizes, "student")
    views = processor_for(student.config, processor)
    view = views.view(examples_of("nano", 1)[0])
    rows.add("prompt", float(len(view.prompt_ids)), "tokens")
    for together in sizes.generated_together:
        with torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.device == "cuda"), peak_memory(sizes) as peak:
            start = time.perf_counter()
            responses = generate(student, views, [view] * together, sizes.generated)
            seconds = time.perf_counter() - start
        longest = max(map(len, responses))
        rows.add(f"{together} responses at a time", 1e3 * seconds / longest, "ms a token, prompts included")
        rows.add(f"{together} responses at a time: peak", peak[0] / GIB, "GiB")


def train(
    sizes: Sizes, models: dict[str, Any], objective: Any, folder: Path
) -> tuple[list[dict[str, float]], list[float], int]:
    """The parts of each step that counts, the losses of all, and the peak in bytes."""
    on_gpu = sizes.device == "cuda"
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "max_steps": sizes.steps + 1,
        "per_device_train_batch_size": sizes.batch,
        "gradient_accumulation_steps": len(sizes.responses) // sizes.batch,
        "num_generations": GROUP,
        "scoring_batch_size": GROUP,
        "max_completion_length": max(sizes.responses),
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": True,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
    }
    records = RunFolder(folder / "run")
    (folder / "run").mkdir()
    trainer: Any = DopdTrainer(
        models["student"],
        models["teacher"],
        DopdConfig(**settings),
        train_dataset=examples_of("nano", len(sizes.responses) // GROUP * (sizes.steps + 1)),
        processing_class=processor_of(sizes),
        objective=objective,
        callbacks=[records],
    )
    records.attach(trainer)
    generator = torch.Generator().manual_seed(1)

    def rollouts(prompts: list[list[int]], images: Any, fields: Any) -> list[list[int]]:
        return [torch.randint(0, 600, (length,), generator=generator).tolist() for length in sizes.responses]

    trainer._generate_single_turn = rollouts
    clock = Clock(sizes.device)
    with watched(clock, trainer, models["student"].config.get_text_config().vocab_size), peak_memory(sizes) as peak:
        trainer.add_callback(WholeSteps(clock))
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return clock.steps[1:], losses, peak[0]


@contextmanager
def watched(clock: Clock, trainer: Any, vocabulary: int) -> Iterator[None]:
    """While it lasts, the parts of a step are timed."""
    scored, created, objective = trainer.policies.score, trainer.create_optimizer, type(trainer.objective)
    for_all = [(trainer_module, "render_batch", "views"), (objective, "decide", "plan")]
    before = [getattr(owner, name) for owner, name, _ in for_all]

    def score(source: Any, *arguments: Any) -> Any:
        with clock.part(f"scoring: {source.policy}"):
            return scored(source, *arguments)

    def create(*arguments: Any, **settings: Any) -> Any:
        optimizer = created(*arguments, **settings)
        clock.wrap(optimizer, "step", "optimizer")
        return optimizer

    trainer.policies.score, trainer.create_optimizer = score, create
    for owner, name, part in for_all:
        clock.wrap(owner, name, part)
    clock.wrap(trainer, "compute_loss", "learning, forward")
    clock.wrap(trainer.accelerator, "backward", "learning, backward")
    with watch_kept(clock), decode_with(tokenizer_of(vocabulary)):
        try:
            yield
        finally:
            for (owner, name, _), original in zip(for_all, before, strict=True):
                setattr(owner, name, original)


@contextmanager
def peak_memory(sizes: Sizes) -> Iterator[list[int]]:
    """The bytes that a GPU held at most while it lasted, once it has ended."""
    found = [0]
    if sizes.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if sizes.device == "cuda":
        torch.cuda.synchronize()
        found[0] = torch.cuda.max_memory_allocated()


def processor_of(sizes: Sizes) -> Any:
    """The nano processor; for the true shapes with their patches, and images of `PIXELS`."""
    processor = AutoProcessor.from_pretrained(find_model("nano:vision-student"), padding_side="left")
    if not sizes.nano:
        processor.image_processor.patch_size = 16
        processor.image_processor.size = {"shortest_edge": PIXELS, "longest_edge": PIXELS}
    return processor


def model_of(sizes: Sizes, role: str) -> Any:
    """A shipped nano model, or an untrained one of the true shapes with the nano tokenizer's ids: a student in fp32, a
    teacher in bf16."""
    nano = find_model(f"nano:vision-{role}")
    if sizes.nano:
        return AutoModelForImageTextToText.from_pretrained(nano).eval()
    described = json.loads((Path(nano) / "config.json").read_text(encoding="utf-8"))
    config, _ = published(known_models()[MODELS[role]])
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, name, described[name])
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        setattr(config.text_config, name, described["text_config"].get(name))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if role == "student" else torch.bfloat16)
    try:
        with torch.device(sizes.device):
            model: Any = Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.config._name_or_path = nano
    model.generation_config.eos_token_id = described["text_config"]["eos_token_id"]
    model.generation_config.pad_token_id = described["text_config"]["pad_token_id"]
    return model.eval()
