"""Whole optimizer steps against `trl.DistillationTrainer`: the same models, prompts, rollouts (greedy) and optimizer.

    python benchmarks/step.py                               # both worlds, fp32 on the CPU
    python benchmarks/step.py --worlds qwen3 --device cuda --bf16

`nano`: the shipped vision models. `qwen3`: untrained models of the shapes of Qwen3-1.7B and Qwen3-0.6B, cut to two
layers, with the whole vocabulary of 151,936. On a CPU each trainer runs in a process of its own, on a GPU one after the
other in one, with the peak of its allocator; the first steps do not count. Other benchmarks call `measure`.
The rollouts of a trained nano student are the same for all; an untrained student's are all of the longest length.
A prompt has `--group` rollouts, as in every run of the paper; TRL is given it as often.
"""

import argparse
import json
import multiprocessing
import queue
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import VERSIONS, describe
from rich.progress import track

STEPS, WARM = 7, 2
PARTS = ("rollout", "scoring", "learning", "other")
COLOURS = {"rollout": "#8aa4c8", "scoring": "#e0a458", "learning": "#5b8e7d", "other": "#b8b8b8"}


class Clock:
    """Seconds spent in the named parts of each step; a part's own time, without what it calls of another part."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.inside: list[str] = []

    def time(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.time()
        self.inside.append(name)
        try:
            yield
        finally:
            spent = self.time() - start
            self.inside.pop()
            self.now[name] += spent
            if self.inside:
                self.now[self.inside[-1]] -= spent

    def wrap(self, owner: Any, method: str, name: str) -> None:
        original: Callable = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def end_step(self) -> None:
        self.steps.append(dict(self.now))
        self.now.clear()


class StepEnds(transformers.TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.start = self.clock.time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        whole = self.clock.time() - self.start
        self.clock.now["other"] = whole - sum(self.clock.now.values())
        self.clock.end_step()


@dataclass(frozen=True)
class Settings:
    """Where and how large a step is."""

    device: str = "cpu"
    bf16: bool = False
    batch: int = 8
    """rollouts a step"""
    length: int = 32
    """response tokens"""
    group: int = 4
    """rollouts of a prompt"""


def models_of(world: str, folder: Path, device: str = "cpu") -> tuple[str, str]:
    """Paths of student and teacher; untrained ones are drawn on the device and written to the folder, once."""
    from dopd_vl.common.resources import find_model

    if world == "nano":
        return str(find_model("nano:vision-student")), str(find_model("nano:vision-teacher"))
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(find_model("nano:text-student"))
    shapes = {"student": (1024, 3072, 16), "teacher": (2048, 6144, 16)}
    for name, (hidden, mlp, heads) in shapes.items():
        if (folder / name).exists():
            continue
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=151_936,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            dtype="float32",
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "student"), str(folder / "teacher")


def examples_of(world: str, size: int) -> Any:
    from rich.console import Console

    from dopd_vl.nano.source import NanoSource
    from dopd_vl.training.run import load_examples
    from privileged.prepare.config import PrepareConfig, SourceConfig
    from privileged.prepare.prepare import prepare

    kind = "vision" if world == "nano" else "text"
    with tempfile.TemporaryDirectory() as folder:
        options = {"world": kind, "split": "train", "size": size, "seed": 0}
        config = PrepareConfig(source=SourceConfig(kind="nano", options=options), output=f"{folder}/data")
        prepare(config, {"nano": NanoSource}, Console(quiet=True))
        examples = load_examples(f"{folder}/data")
        return examples.map(lambda row: row, keep_in_memory=True)


def trl_row(row: dict[str, Any]) -> dict[str, Any]:
    """TRL puts a prompt's images in by itself."""
    from privileged.records.images import load_image

    messages = [{**message, "content": message["content"].replace("<image>", "")} for message in row["prompt"]]
    images = [load_image(image).image for image in row["images"] or []]
    return {"prompt": messages, "images": images} if images else {"prompt": messages}


def measure(way: str, world: str, settings: Settings, models: Path) -> dict[str, Any]:
    """Seconds of a step and of its parts, in this process; on a GPU the allocator's peak, too.

    Args:
        way: one of `WAYS`.
        world: "nano" or "qwen3".
        models: a folder for untrained models, which are made once.
    """
    from trl import DistillationConfig, DistillationTrainer

    from dopd_vl import DopdConfig, DopdTrainer
    from dopd_vl.objectives import Dopd, Opd

    if settings.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    student, teacher = models_of(world, models, settings.device)
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {
            "output_dir": f"{folder}/run",
            "max_steps": STEPS,
            "per_device_train_batch_size": settings.batch,
            "max_completion_length": settings.length,
            "top_k": 1,
            "learning_rate": 1e-6,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "use_cpu": settings.device == "cpu",
            "bf16": settings.bf16,
            "shuffle_dataset": False,
        }
        examples = examples_of(world, settings.batch // settings.group * STEPS)
        trainer: Any
        if way == "trl opd":
            from datasets import Dataset

            rows = [row for example in examples for row in [trl_row(example)] * settings.group]
            config = DistillationConfig(**given, beta=1.0)
            trainer = DistillationTrainer(student, teacher, config, train_dataset=Dataset.from_list(rows))
        else:
            objective = Opd() if way == "opd" else Dopd()
            # Of the paper's 128 rollouts a step the default keeps two for a person to look at.
            ours = DopdConfig(**given, num_generations=settings.group, rollouts_to_keep=1)
            trainer = DopdTrainer(student, teacher, ours, train_dataset=examples, objective=objective)
        clock = Clock(settings.device)
        clock.wrap(trainer, "_generate", "rollout")
        if way != "trl opd":
            clock.wrap(trainer.policies, "score", "scoring")
        clock.wrap(trainer, "compute_loss", "learning")
        clock.wrap(trainer.accelerator, "backward", "learning")
        trainer.add_callback(StepEnds(clock))
        trainer.train()
    counted = clock.steps[WARM:]
    seconds = [sum(step.values()) for step in counted]
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "loss" in row]
    row = {
        "seconds": statistics.median(seconds),
        "spread": [min(seconds), max(seconds)],
        "parts": {part: statistics.median(step.get(part, 0.0) for step in counted) for part in PARTS},
        "mean_length": statistics.mean(lengths),
    }
    if settings.device != "cpu":
        row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return row


def _in_a_process(way: str, world: str, settings: Settings, models: Path) -> dict[str, Any]:
    """The same in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (way, world, settings, models, torch.get_num_threads(), results)
    process = context.Process(target=_measured, args=arguments)
    process.start()
    while True:
        try:
            row: dict[str, Any] = results.get(timeout=5)
            break
        except queue.Empty:
            if process.exitcode is not None:
                raise SystemExit(f"{world}, {way} failed") from None
    process.join()
    return row


def _measured(way: str, world: str, settings: Settings, models: Path, threads: int, results: Any) -> None:
    torch.set_num_threads(threads)
    results.put(measure(way, world, settings, models))


WAYS = ("trl opd", "opd", "dopd")


def as_markdown(report: dict[str, Any]) -> str:
    lines = ["| world | trainer | s/step | x TRL | rollout | scoring | learning | other |", "|" + "---|" * 8]
    for world, rows in report["rows"].items():
        for way, row in rows.items():
            ratio = row["seconds"] / rows["trl opd"]["seconds"]
            parts = " | ".join(f"{row['parts'][part]:.2f}" for part in PARTS)
            lines.append(f"| {world} | {way} | {row['seconds']:.2f} | {ratio:.2f} | {parts} |")
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """Stacked bars: where a step's time goes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(report["rows"]), figsize=(4.2 * len(report["rows"]), 2.8), squeeze=False)
    for axis, (world, rows) in zip(axes[0], report["rows"].items(), strict=True):
        left = [0.0] * len(rows)
        for part in PARTS:
            values = [row["parts"][part] for row in rows.values()]
            axis.barh(list(rows), values, left=left, color=COLOURS[part], label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axis.set_title(world)
        axis.set_xlabel("seconds a step")
        axis.invert_yaxis()
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["nano", "qwen3"], choices=["nano", "qwen3"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8, help="rollouts a step, qwen3")
    parser.add_argument("--length", type=int, default=32, help="response tokens, qwen3")
    parser.add_argument("--group", type=int, default=4, help="rollouts of a prompt")
    parser.add_argument("--nano-batch", type=int, default=32)
    parser.add_argument("--nano-length", type=int, default=48)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step"), help="path without a suffix")
    parser.add_argument("--figure", type=Path, default=Path("docs/performance-step.svg"))
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(args.device, args.threads, "bf16" if args.bf16 else "fp32"),
        "versions": VERSIONS,
        "rows": {world: {} for world in args.worlds},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    of_world = {"nano": (args.nano_batch, args.nano_length), "qwen3": (args.batch, args.length)}
    run = _in_a_process if args.device == "cpu" else measure
    with tempfile.TemporaryDirectory() as models:
        for world, way in track([(world, way) for world in args.worlds for way in WAYS], "step"):
            settings = Settings(args.device, args.bf16, *of_world[world], args.group)
            report["rows"][world][way] = run(way, world, settings, Path(models))
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(as_markdown(report))
    draw(report, args.figure)
    print(as_markdown(report))


if __name__ == "__main__":
    main()
