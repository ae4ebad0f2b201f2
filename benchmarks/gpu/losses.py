"""The loss alone: whether it is right, by the same loss in fp64, and what it costs beside others and its products."""

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from loss import LEARNT, WAYS, Shape, Tensors, floor, make_tensors
from torch import Tensor

from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.table import Rows
from dopd_vl.core import FusedLoss, Projection, Source, TokenScores, fused_plan_loss, score_tokens
from dopd_vl.objectives.dopd import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER, DopdSettings, dopd_plan, route_tokens
from dopd_vl.objectives.dopd_loss import dopd_loss

GIB = 2**30
PACKAGES = ("torch", "triton", "transformers", "trl", "accelerate", "datasets", "peft", "pyarrow", "liger-kernel")
PRODUCTS, TRL, LIGER = "products alone", "TRL's divergence of two policies", "Liger's divergence of two policies"
ROWS = 4096
"""Tokens that the floor projects at a time: enough that its products are as fast as they get."""


def environment(sizes: Sizes, rows: Rows) -> None:
    """Versions, the GPU, and what it does in one product and one copy."""
    for name in PACKAGES:
        try:
            rows.add(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            rows.add(name, "not installed")
    rows.add("pyarrow below 24", float(int(importlib.metadata.version("pyarrow").split(".")[0]) < 24), at_most=0)
    rows.add("device", torch.cuda.get_device_name() if sizes.device == "cuda" else "CPU")
    width = 8192 if sizes.device == "cuda" else 256
    factor = torch.randn(width, width, device=sizes.device, dtype=torch.bfloat16)
    seconds, _ = measure(sizes, lambda: (factor @ factor,))
    rows.add(f"product of bf16 {width} x {width}", 2 * width**3 / seconds / 1e12, "TFLOPS")
    source = torch.zeros(width**2 * 8, device=sizes.device, dtype=torch.uint8)
    seconds, _ = measure(sizes, lambda: (source.clone(),))
    rows.add("copy", 2 * source.numel() / seconds / 1e12, "TB/s")


def correctness(sizes: Sizes, rows: Rows) -> None:
    """Scores, losses and gradients against the plain loss in fp64 on the same rounded numbers."""
    settings = DopdSettings(top_k=sizes.top_k)
    exact = tensors(sizes, sizes.checked_tokens)
    rounded = in_bf16(exact)
    kinds: dict[str, tuple[Tensors, Tensors, torch.dtype | None, float]] = {
        "fp32": (exact, exact, None, 1e-4),
        "bf16 weights": (rounded, rounded, None, 1e-2),
        "fp32 weights, bf16 products": (mixed(exact, rounded), rounded, torch.bfloat16, 1e-2),
    }
    for kind, (given, seen, dtype, near) in kinds.items():
        reference = {name: value.double() if value.is_floating_point() else value for name, value in seen.items()}
        ours, theirs = leaves(given), leaves(reference)
        plain = dopd_loss(*whole_logits(theirs), theirs["response_ids"], theirs["response_mask"], settings)
        taught, scores = dopd(ours, settings, dtype, plain.regime)
        regime = route_tokens(*(scores[source].logp for source in scores), ours["response_mask"], settings)[0]
        logp = whole_logits(theirs)[2].detach().log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        found = scores[PRIVILEGED_STUDENT].entropy
        rows.add(f"{kind}: entropy, largest error", float((found - entropy).abs().max()), "nats", at_most=1e-3)
        chosen = logp.gather(-1, theirs["response_ids"].unsqueeze(-1)).squeeze(-1)
        error = (scores[PRIVILEGED_STUDENT].logp - chosen).abs().max()
        rows.add(f"{kind}: log-probability, largest error", float(error), "nats", at_most=1e-3)
        rows.add(f"{kind}: losses of tokens", relative(taught.token_loss, plain.token_loss), "relative", at_most=1e-3)
        gradients = zip(
            LEARNT,
            torch.autograd.grad(taught.loss, [ours[name] for name in LEARNT]),
            torch.autograd.grad(plain.loss, [theirs[name] for name in LEARNT]),
            strict=True,
        )
        for name, gradient, expected in gradients:
            what = name.removeprefix("student_")
            rows.add(f"{kind}: gradient of the {what}", relative(gradient, expected), "relative", at_most=near)
        rows.add(f"{kind}: tokens routed otherwise", float((regime != plain.regime).sum()), f"of {regime.numel()}")


def loss(sizes: Sizes, rows: Rows) -> None:
    """Milliseconds and GiB from hidden states to gradients."""
    for tokens in sizes.loss_tokens:
        exact = tensors(sizes, tokens)
        rounded = leaves(in_bf16(exact))
        in_fp32 = leaves(mixed(exact, rounded))
        settings = DopdSettings(top_k=sizes.top_k)
        ways: dict[str, Callable[[], tuple[Tensor, ...]]] = {
            PRODUCTS: partial(floor, rounded, ROWS),
            "DOPD": partial(dopd_gradients, rounded, settings),
            "DOPD, fp32 weights and bf16 products": partial(dopd_gradients, in_fp32, settings, torch.bfloat16),
            TRL: partial(WAYS["trl"], rounded),
        }
        liger = WAYS.get("liger") if sizes.device == "cuda" else None
        if liger is None:
            rows.add(f"{tokens:,} tokens: {LIGER}", "skipped: not installed, or no GPU")
        else:
            ways[LIGER] = partial(liger, rounded)
        took: dict[str, float] = {}
        for name, way in ways.items():
            try:
                took[name], peak = measure(sizes, way)
            except Exception as error:  # another library's kernel is not to end the stage
                rows.add(f"{tokens:,} tokens: {name}", f"failed: {type(error).__name__}: {str(error)[:200]}")
                continue
            rows.add(f"{tokens:,} tokens: {name}", 1e3 * took[name], "ms")
            rows.add(f"{tokens:,} tokens: {name}, peak beyond its inputs", peak / GIB, "GiB")
        for other, goal in ((PRODUCTS, 2.0), (TRL, 0.5)):
            if {"DOPD", other} <= set(took):
                largest = tokens == max(sizes.loss_tokens)
                at_most = sizes.of_time(goal) if largest else None
                rows.add(f"{tokens:,} tokens: DOPD / {other}", took["DOPD"] / took[other], at_most=at_most)


def tensors(sizes: Sizes, tokens: int) -> Tensors:
    """In fp32, on the device; policies agree about as much as a student and its teacher do."""
    return make_tensors(Shape(sizes.vocabulary, sizes.hidden, sizes.teacher_hidden, sizes.device), tokens)


def leaves(t: Tensors) -> Tensors:
    """The same with a gradient where the student learns."""
    return {name: value.detach().clone().requires_grad_() if name in LEARNT else value for name, value in t.items()}


def in_bf16(t: Tensors) -> Tensors:
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in t.items()}


def mixed(exact: Tensors, rounded: Tensors) -> Tensors:
    """A student in fp32 with a teacher in bf16, as a run on a GPU has them."""
    return {name: rounded[name] if name.startswith("teacher") else value for name, value in exact.items()}


def whole_logits(t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Of the student, its teacher and its privileged copy, `[1, N, V]`."""
    return (
        t["student_hidden"] @ t["student_head"].T,
        t["teacher_hidden"] @ t["teacher_head"].T,
        t["privileged_student_hidden"] @ t["student_head"].T.detach(),
    )


def dopd(
    t: Tensors, settings: DopdSettings, dtype: torch.dtype | None = None, regime: Tensor | None = None
) -> tuple[FusedLoss, dict[Source, TokenScores]]:
    """What a step does with three policies' hidden states, scores included; `dtype`: of fp32 weights' products."""
    ids, mask = t["response_ids"], t["response_mask"]
    sources = {
        PRIVILEGED_TEACHER: Projection(t["teacher_hidden"], t["teacher_head"]).constant(),
        PRIVILEGED_STUDENT: Projection(t["privileged_student_hidden"], t["student_head"], None, dtype).constant(),
    }
    scores = {source: score_tokens(policy, ids, mask, settings.top_k) for source, policy in sources.items()}
    if regime is None:
        regime = route_tokens(*(scores[source].logp for source in sources), mask, settings)[0]
    student = Projection(t["student_hidden"], t["student_head"], None, dtype)
    return fused_plan_loss(dopd_plan(regime, settings), student, sources, ids, mask, scores), scores


def dopd_gradients(t: Tensors, settings: DopdSettings, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    return torch.autograd.grad(dopd(t, settings, dtype)[0].loss, [t[name] for name in LEARNT])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def measure(sizes: Sizes, way: Callable[[], tuple[Tensor, ...]]) -> tuple[float, int]:
    """The median of seconds, and the bytes that a GPU held at most beyond what was there and what is returned."""
    on_gpu = sizes.device == "cuda"
    seconds, peak = [], 0
    for turn in range(sizes.repeats + 1):
        before = 0
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        returned = way()
        if on_gpu:
            torch.cuda.synchronize()
        if turn:
            seconds.append(time.perf_counter() - start)
        size = sum(tensor.numel() * tensor.element_size() for tensor in returned)
        peak = max(peak, torch.cuda.max_memory_allocated() - before - size) if on_gpu else 0
        del returned
    return statistics.median(seconds), peak
