"""Predicted against measured peak memory of training runs on the CPU, in fp32.

    python benchmarks/memory.py                       # three sizes, four ways each; earlier rows are kept
    python benchmarks/memory.py --sizes small         # one of them
    python benchmarks/memory.py --sizes               # none: what was measured, predicted anew

Untrained models of Qwen3's shapes with the nano tokenizer, a few optimizer steps of DOPD on the nano text world. Each
run is a process of its own; measured is its peak resident memory beyond what it had with everything imported and the
data loaded, before any model. glibc is told to give freed memory back (MALLOC_MMAP_THRESHOLD_), or its own keeping
would be measured. The prediction is made from the same configuration, by model folders, and from the longest prompts
and responses that the run saw.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS, RANK = 2, 8
COLUMNS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"student": (384, 1152, 8, 6, 64, 1024), "teacher": (512, 1536, 10, 8, 64, 1024)},
    "medium": {"student": (512, 1536, 8, 8, 64, 151_936), "teacher": (768, 2304, 10, 12, 64, 151_936)},
    "large": {"student": (1024, 3072, 16, 16, 128, 32_768), "teacher": (1024, 3072, 24, 16, 128, 32_768)},
}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "checkpointing": {"gradient_checkpointing": True},
    "two slices": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "LoRA": {"lora": True},
}


def describe_models(size: str, folder: Path) -> None:
    """Folders of student and teacher that hold their configurations, and no weights."""
    from transformers import AutoTokenizer, Qwen3Config

    from dopd_vl.common.resources import find_model

    tokenizer = AutoTokenizer.from_pretrained(find_model("nano:text-student"))
    for name, values in SHAPES[size].items():
        shape = dict(zip(COLUMNS, values, strict=True))
        Qwen3Config(
            **shape,
            num_key_value_heads=shape["num_attention_heads"] // 2,
            tie_word_embeddings=True,
            dtype="float32",
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def build_models(size: str, folder: Path) -> None:
    """Untrained student and teacher, saved as ordinary model folders."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    describe_models(size, folder)
    for name in SHAPES[size]:
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder / name)).save_pretrained(folder / name)


def resident(field: str) -> int:
    """Bytes: VmRSS, now, or VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(value) * 1024


def run(models: Path, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say what was held at most and how long the sequences were."""
    import torch
    from peft import LoraConfig
    from step import examples_of

    from dopd_vl import DopdConfig, DopdTrainer
    from dopd_vl.objectives import Dopd

    torch.set_num_threads(args.threads)
    settings = {**loop_settings(args), **WAYS[way]}
    lora = settings.pop("lora", False)
    examples = examples_of("qwen3", 2 * STEPS * args.batch)
    config = DopdConfig(
        str(models / "run"),
        **settings,
        max_steps=STEPS,
        model_init_kwargs={"dtype": "float32"},
        teacher_model_init_kwargs={"dtype": "float32"},
        learning_rate=1e-6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    before = resident("VmRSS")
    trainer = DopdTrainer(
        str(models / "student"),
        str(models / "teacher"),
        config,
        train_dataset=examples,
        objective=Dopd(),
        peft_config=LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    seen = {"prompt_tokens": 0, "privileged_tokens": 0, "response_tokens": 0}
    score = trainer.policies.score

    def watched(source: Any, views: Any, responses: Any, mask: Any) -> Any:
        longest = max(len(view.prompt_ids) for view in views)
        seen["privileged_tokens"] = max(seen["privileged_tokens"], longest)
        seen["response_tokens"] = max(seen["response_tokens"], max(map(len, responses)))
        return score(source, views, responses, mask)

    generate = trainer._generate

    def watched_rollouts(views: Any) -> Any:
        seen["prompt_tokens"] = max(seen["prompt_tokens"], max(len(view.prompt_ids) for view in views))
        return generate(views)

    trainer.policies.score, trainer._generate = watched, watched_rollouts  # type: ignore[method-assign]
    trainer.train()
    peak = resident("VmHWM")
    return {"measured": peak - before, "peak": peak, **seen}


def loop_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all ways share, by the names of both `LoopSettings` and `DopdConfig`."""
    return {
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": 1,
        "num_generations": args.group,
        "max_completion_length": args.length,
        "gradient_checkpointing": False,
    }


def predict(models: Path, way: str, args: argparse.Namespace, seen: dict[str, int]) -> Any:
    """The plan of the same run."""
    from dopd_vl.planning.build import workload_of
    from dopd_vl.planning.config import PlanConfig
    from dopd_vl.planning.memory import memory_of
    from dopd_vl.train_config import LoopSettings, LoraSettings, ModelSettings

    settings = {**loop_settings(args), **WAYS[way]}
    lora = LoraSettings(r=RANK) if settings.pop("lora", False) else None
    loop = LoopSettings(**{**settings, "max_completion_length": seen["response_tokens"]})
    model = ModelSettings(str(models / "student"), str(models / "teacher"), lora=lora)
    lengths = {name: seen[name] for name in ("prompt_tokens", "privileged_tokens")}
    work = workload_of(PlanConfig(model=model, training=loop, **lengths), on_gpu=False)
    return work, memory_of(work)


def child(models: str, *rest: str) -> dict[str, Any]:
    """One run in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--child", models, *rest]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        "| student, teacher | way | predicted MB | measured MB | predicted / measured | the worst moment |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        models = f"{row['student'] / 1e6:.0f} M, {row['teacher'] / 1e6:.0f} M, vocabulary {row['vocabulary']:,}"
        predicted, measured = row["predicted"] / 1e6, row["measured"] / 1e6
        ratio = predicted / measured
        lines.append(
            f"| {models} | {row['way']} | {predicted:,.0f} | {measured:,.0f} | {ratio:.2f} | {row['moment']} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", f"({report['machine']}; {versions}.)", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--batch", type=int, default=8, help="rollouts a step")
    parser.add_argument("--group", type=int, default=4, help="rollouts of a prompt")
    parser.add_argument("--length", type=int, default=48, help="response tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory"), help="path without a suffix")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run(args.child, args.ways[0], args)))
        return
    from machine import VERSIONS, describe

    report: dict[str, Any] = {"machine": describe("cpu", args.threads, "float32"), "versions": VERSIONS, "rows": []}
    measured = {}
    if args.output.with_suffix(".json").exists():
        rows = json.loads(args.output.with_suffix(".json").read_text())["rows"]
        measured = {(row["size"], row["way"]): row for row in rows}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            build_models(size, Path(folder))
            for way in args.ways:
                numbers = [f"--{name}={getattr(args, name)}" for name in ("batch", "group", "length", "threads")]
                measured[size, way] = child(folder, "--ways", way, *numbers)
                print(size, way, measured[size, way], flush=True)
    for (size, way), seen in measured.items():
        with tempfile.TemporaryDirectory() as folder:
            describe_models(size, Path(folder))
            work, memory = predict(Path(folder), way, args, seen)
        row = {
            "student": work.student.parameters,
            "teacher": work.teachers[0].shape.parameters,
            "vocabulary": work.student.vocabulary,
            "predicted": memory.peak,
            "moment": memory.peak_moment,
        }
        report["rows"].append({**seen, "size": size, "way": way, **row})
    order = list(SHAPES), list(WAYS)
    report["rows"].sort(key=lambda row: (order[0].index(row["size"]), order[1].index(row["way"])))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
