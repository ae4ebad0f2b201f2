"""Time and memory of the loss alone, from hidden states to gradients, on the same tensors in one run.

    python benchmarks/loss.py                              # 512, 1,024 and 4,096 tokens, fp32
    python benchmarks/loss.py --device cuda --dtype bfloat16 --tokens 4096 16384

`floor` is the matrix products of the three-policy loss and nothing else; `trl` compares two policies only, by TRL's
chunked Jensen-Shannon divergence. `naive` is the plain three-policy loss on whole logits. Peak memory is beyond the
inputs and the gradients that are returned. Every measurement is made in a process of its own.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import VERSIONS, describe
from rich.progress import track
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import dopd_loss, fused_dopd_loss

Tensors = dict[str, Tensor]
MIB = 2**20


def make_tensors(args: argparse.Namespace, tokens: int) -> Tensors:
    """Hidden states whose three policies agree about as much as a student and its teacher do, not independent ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    student_head = normal(args.vocabulary, args.hidden) / args.hidden**0.5
    student = normal(1, tokens, args.hidden)
    teacher_head = torch.cat([student_head, normal(args.vocabulary, args.teacher_hidden - args.hidden) * 0.02], dim=1)
    # One token in five is one that the student is sure of and is wrong about, one in five the other way round.
    sharpness = torch.tensor([2.0, 2.0, 2.0, 4.0, 1.0]).repeat(tokens // 5 + 1)[:tokens, None]
    privileged = student * sharpness + 0.3 * normal(1, tokens, args.hidden)
    rest = normal(1, tokens, args.teacher_hidden - args.hidden)
    tensors = {
        "student_hidden": student,
        "student_head": student_head,
        "teacher_hidden": torch.cat([2.5 * student + 0.3 * normal(1, tokens, args.hidden), rest], dim=-1),
        "teacher_head": teacher_head,
        "privileged_student_hidden": privileged,
    }
    tensors = {name: tensor.to(args.device, getattr(torch, args.dtype)) for name, tensor in tensors.items()}
    logits = [(2 * student[0, at : at + 256] @ student_head.T) for at in range(0, tokens, 256)]
    sampled = torch.cat([torch.distributions.Categorical(logits=part.float()).sample() for part in logits])
    ids = {"response_ids": sampled[None].to(args.device)}
    return {**tensors, **ids, "response_mask": torch.ones(1, tokens, dtype=torch.bool, device=args.device)}


def ours(t: Tensors) -> tuple[Tensor, ...]:
    out = fused_dopd_loss(**t)
    return torch.autograd.grad(out.loss, (t["student_hidden"], t["student_head"]))


def naive(t: Tensors) -> tuple[Tensor, ...]:
    logits = (
        t["student_hidden"] @ t["student_head"].T,
        t["teacher_hidden"] @ t["teacher_head"].T,
        t["privileged_student_hidden"] @ t["student_head"].T.detach(),
    )
    out = dopd_loss(*logits, t["response_ids"], t["response_mask"], DopdSettings())
    return torch.autograd.grad(out.loss, (t["student_hidden"], t["student_head"]))


def trl_js(t: Tensors) -> tuple[Tensor, ...]:
    divergence, _ = ChunkedDivergenceFunction.apply(
        t["student_hidden"][0], t["student_head"], None, t["teacher_hidden"][0], t["teacher_head"], None, 0.5
    )
    return torch.autograd.grad(divergence.mean(), (t["student_hidden"], t["student_head"]))


def trl_reverse_kl(t: Tensors) -> tuple[Tensor, ...]:
    divergence, _ = ChunkedDivergenceFunction.apply(
        t["student_hidden"][0], t["student_head"], None, t["teacher_hidden"][0], t["teacher_head"], None, 1.0
    )
    return torch.autograd.grad(divergence.mean(), (t["student_hidden"], t["student_head"]))


@torch.no_grad()
def floor(t: Tensors) -> tuple[Tensor, ...]:
    """Three projections, and the two products of the student's backward pass, 256 tokens at a time."""
    head = t["student_head"]
    gradient = torch.zeros_like(head)
    hidden_gradient = torch.zeros_like(t["student_hidden"][0])
    for at in range(0, t["response_ids"].shape[1], 256):
        some = slice(at, at + 256)
        t["teacher_hidden"][0, some] @ t["teacher_head"].T
        t["privileged_student_hidden"][0, some] @ head.T
        logits = t["student_hidden"][0, some] @ head.T
        hidden_gradient[some] = logits @ head
        gradient.addmm_(logits.T, t["student_hidden"][0, some])
    return hidden_gradient, gradient


WAYS: dict[str, Callable[[Tensors], tuple[Tensor, ...]]] = {
    "floor": floor,
    "ours": ours,
    "trl": trl_js,
    "trl reverse KL": trl_reverse_kl,
    "naive": naive,
}


def measure(way: str, args: argparse.Namespace, tokens: int, repeats: int, results: Any) -> None:
    torch.set_num_threads(args.threads)
    tensors = make_tensors(args, tokens)
    for name in ("student_hidden", "student_head"):
        tensors[name].requires_grad_()
    seconds = []
    peak = 0
    for _ in range(repeats):
        before = _memory(args.device, reset=True)
        start = time.perf_counter()
        gradients = WAYS[way](tensors)
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        returned = sum(g.numel() * g.element_size() for g in gradients)
        peak = max(peak, _memory(args.device, reset=False) - before - returned)
        del gradients
    results.put({"seconds": statistics.median(seconds), "peak_mib": round(peak / MIB)})


def _memory(device: str, reset: bool) -> int:
    """Bytes in use now (reset) or at most since the reset: of the process, or of the GPU's allocator."""
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS" if reset else "VmHWM"].split()[0]) * 1024


def in_a_process(way: str, args: argparse.Namespace, tokens: int) -> dict[str, float] | None:
    """The measurement, or None where the process died for want of memory."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(way, args, tokens, args.repeats, results))
    process.start()
    process.join()
    return results.get() if process.exitcode == 0 else None


def as_markdown(report: dict[str, Any]) -> str:
    lines = [
        "| tokens | way | seconds | x floor | x TRL | peak MiB | x TRL | x naive |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def ratio(row: dict[str, float], other: dict[str, float] | None, key: str) -> str:
        return f"{row[key] / other[key]:.2f}" if other and other[key] else "-"

    for tokens, rows in report["rows"].items():
        for way, row in rows.items():
            if row is None:
                lines.append(f"| {int(tokens):,} | {way} | does not fit | - | - | - | - | - |")
                continue
            cells = [
                f"{int(tokens):,}",
                way,
                f"{row['seconds']:.1f}" if row["seconds"] > 1 else f"{row['seconds']:.3f}",
                ratio(row, rows.get("floor"), "seconds"),
                ratio(row, rows.get("trl"), "seconds"),
                f"{row['peak_mib']:,}",
                ratio(row, rows.get("trl"), "peak_mib"),
                ratio(row, rows.get("naive"), "peak_mib"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _keep_earlier_rows(report: dict[str, Any], file: Path) -> None:
    """A run adds to what an earlier one measured on the same machine: long ones can be had in parts."""
    earlier = json.loads(file.read_text()) if file.exists() else {}
    if all(earlier.get(key) == report[key] for key in ("machine", "versions", "vocabulary", "hidden")):
        rows = {**earlier["rows"], **{tokens: earlier["rows"].get(tokens, {}) for tokens in report["rows"]}}
        report["rows"] = dict(sorted(rows.items(), key=lambda item: int(item[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--teacher-hidden", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/loss"), help="path without a suffix")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(args.device, args.threads, args.dtype),
        "versions": VERSIONS,
        "vocabulary": args.vocabulary,
        "hidden": [args.hidden, args.teacher_hidden],
        "rows": {str(tokens): {} for tokens in args.tokens},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    _keep_earlier_rows(report, args.output.with_suffix(".json"))
    for tokens, way in track([(tokens, way) for tokens in args.tokens for way in args.ways], "loss"):
        report["rows"][str(tokens)][way] = in_a_process(way, args, tokens)
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
