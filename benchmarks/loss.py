"""Time and memory of the loss alone, from hidden states to gradients, on the same tensors in one run.

    python benchmarks/loss.py                              # 512, 1,024 and 4,096 tokens, fp32
    python benchmarks/loss.py --device cuda --dtype bfloat16 --tokens 4096 16384

`floor` is the matrix products of the three-policy loss and nothing else; `trl` compares two policies only, by TRL's
chunked Jensen-Shannon divergence, and so does `liger` where Liger's kernels are installed. `naive` is the plain
three-policy loss on whole logits. Peak memory is beyond the inputs and the gradients that are returned. To be called by
other benchmarks: `measure`.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import VERSIONS, describe
from rich.progress import track
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from dopd_vl.core.projection import chunk_size_for
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import dopd_loss, fused_dopd_loss

Tensors = dict[str, Tensor]
Row = dict[str, float]
LEARNT = ("student_hidden", "student_head")
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """Where and how large."""

    vocabulary: int = 151_936
    hidden: int = 1024
    teacher_hidden: int = 2048
    device: str = "cpu"
    dtype: str = "float32"


def make_tensors(shape: Shape, tokens: int) -> Tensors:
    """Hidden states whose three policies agree about as much as a student and its teacher do, not independent ones.

    Drawn where they stay; the student's hidden states and head are leaves that require a gradient.
    """
    generator = torch.Generator(shape.device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=shape.device)

    beyond = shape.teacher_hidden - shape.hidden
    student_head = normal(shape.vocabulary, shape.hidden) / shape.hidden**0.5
    student = normal(1, tokens, shape.hidden)
    teacher_head = torch.cat([student_head, normal(shape.vocabulary, beyond) * 0.02], dim=1)
    # One token in five is one that the student is sure of and is wrong about, one in five the other way round.
    sharpness = torch.tensor([2.0, 2.0, 2.0, 4.0, 1.0], device=shape.device).repeat(tokens // 5 + 1)[:tokens, None]
    privileged = student * sharpness + 0.3 * normal(1, tokens, shape.hidden)
    rest = normal(1, tokens, beyond)
    teacher = torch.cat([2.5 * student + 0.3 * normal(1, tokens, shape.hidden), rest], dim=-1)
    logits = (2 * part @ student_head.T for part in student[0].split(256))
    sampled = torch.cat([part.softmax(-1).multinomial(1, generator=generator) for part in logits]).T
    floats = {
        "student_hidden": student,
        "student_head": student_head,
        "teacher_hidden": teacher,
        "teacher_head": teacher_head,
        "privileged_student_hidden": privileged,
    }
    tensors = {name: tensor.to(getattr(torch, shape.dtype)) for name, tensor in floats.items()}
    for name in LEARNT:
        tensors[name].requires_grad_()
    return {**tensors, "response_ids": sampled, "response_mask": torch.ones_like(sampled, dtype=torch.bool)}


def ours(t: Tensors) -> tuple[Tensor, ...]:
    out = fused_dopd_loss(**t)
    return torch.autograd.grad(out.loss, [t[name] for name in LEARNT])


def naive(t: Tensors) -> tuple[Tensor, ...]:
    logits = (
        t["student_hidden"] @ t["student_head"].T,
        t["teacher_hidden"] @ t["teacher_head"].T,
        t["privileged_student_hidden"] @ t["student_head"].T.detach(),
    )
    out = dopd_loss(*logits, t["response_ids"], t["response_mask"], DopdSettings())
    return torch.autograd.grad(out.loss, [t[name] for name in LEARNT])


def trl(beta: float, t: Tensors) -> tuple[Tensor, ...]:
    heads = t["student_head"], None, t["teacher_hidden"][0], t["teacher_head"], None
    divergence, _ = ChunkedDivergenceFunction.apply(t["student_hidden"][0], *heads, beta)
    return torch.autograd.grad(divergence.mean(), [t[name] for name in LEARNT])


def liger(beta: float, t: Tensors) -> tuple[Tensor, ...]:
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    pair = t["student_hidden"][0], t["student_head"], t["teacher_hidden"][0], t["teacher_head"]
    loss = LigerFusedLinearJSD(jsd_beta=beta, accum_dtype=torch.float32)(*pair)
    return torch.autograd.grad(loss, [t[name] for name in LEARNT])


@torch.no_grad()
def floor(t: Tensors, rows: int | None = None) -> tuple[Tensor, ...]:
    """Three projections, and the two products of the student's backward pass, as many tokens at a time as ours.

    Args:
        rows: another number of tokens.
    """
    head = t["student_head"]
    rows = rows or chunk_size_for(head.device, len(head), head.dtype)
    gradient = torch.zeros_like(head)
    hidden_gradient = torch.zeros_like(t["student_hidden"][0])
    for at in range(0, t["response_ids"].shape[1], rows):
        some = slice(at, at + rows)
        t["teacher_hidden"][0, some] @ t["teacher_head"].T
        t["privileged_student_hidden"][0, some] @ head.T
        logits = t["student_hidden"][0, some] @ head.T
        hidden_gradient[some] = logits @ head
        gradient.addmm_(logits.T, t["student_hidden"][0, some])
    return hidden_gradient, gradient


WAYS: dict[str, Callable[[Tensors], tuple[Tensor, ...]]] = {
    "floor": floor,
    "ours": ours,
    "trl": partial(trl, 0.5),
    "trl reverse KL": partial(trl, 1.0),
    "naive": naive,
}
if find_spec("liger_kernel") is not None:
    WAYS |= {"liger": partial(liger, 0.5), "liger reverse KL": partial(liger, 1.0)}


def measure(shape: Shape, tokens: int, ways: Iterable[str] = tuple(WAYS), repeats: int = 1) -> dict[str, Row | None]:
    """Seconds (the median) and peak MiB of each way at a number of tokens; None where it does not fit.

    On a GPU in this process, on the same tensors, after a run of each way that does not count. On a CPU every way has a
    process of its own, whose peak is its alone.
    """
    if shape.device == "cpu":
        return {way: _in_a_process(way, shape, tokens, repeats) for way in ways}
    tensors = make_tensors(shape, tokens)
    rows: dict[str, Row | None] = {}
    for way in ways:
        try:
            WAYS[way](tensors)
            rows[way] = measure_way(way, tensors, repeats)
        except torch.OutOfMemoryError:
            rows[way] = None
        torch.cuda.empty_cache()
    return rows


def measure_way(way: str, tensors: Tensors, repeats: int = 1) -> Row:
    """One of `WAYS` in this process."""
    device = tensors["student_head"].device.type
    seconds = []
    peak = 0
    for _ in range(repeats):
        before = _memory(device, reset=True)
        start = _now(device)
        gradients = WAYS[way](tensors)
        seconds.append(_now(device) - start)
        returned = sum(g.numel() * g.element_size() for g in gradients)
        peak = max(peak, _memory(device, reset=False) - before - returned)
        del gradients
    return {"seconds": statistics.median(seconds), "peak_mib": round(peak / MIB)}


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


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


def _in_a_process(way: str, shape: Shape, tokens: int, repeats: int) -> Row | None:
    """The measurement, or None where the process died for want of memory."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (way, shape, tokens, repeats, torch.get_num_threads(), results)
    process = context.Process(target=_measured, args=arguments)
    process.start()
    process.join()
    return results.get() if process.exitcode == 0 else None


def _measured(way: str, shape: Shape, tokens: int, repeats: int, threads: int, results: Any) -> None:
    torch.set_num_threads(threads)
    results.put(measure_way(way, make_tensors(shape, tokens), repeats))


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
    torch.set_num_threads(args.threads)
    shape = Shape(args.vocabulary, args.hidden, args.teacher_hidden, args.device, args.dtype)
    report: dict[str, Any] = {
        "machine": describe(args.device, args.threads, args.dtype),
        "versions": VERSIONS,
        "vocabulary": args.vocabulary,
        "hidden": [args.hidden, args.teacher_hidden],
        "rows": {str(tokens): {} for tokens in args.tokens},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    _keep_earlier_rows(report, args.output.with_suffix(".json"))
    together = [[way] for way in args.ways] if args.device == "cpu" else [args.ways]
    for tokens, ways in track([(tokens, ways) for tokens in args.tokens for ways in together], "loss"):
        report["rows"][str(tokens)] |= measure(shape, tokens, ways, args.repeats)
        args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
