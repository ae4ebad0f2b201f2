"""The loss's kernels against the plain passes and fp64, on a GPU or by Triton's interpreter on a CPU."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from dopd_vl.core import (
    Plan,
    PolicyGradient,
    Projection,
    Source,
    Term,
    divergence_of,
    execute_plan,
    fused_loss,
    fused_plan_loss,
    passes,
    projection,
    reduce,
    score_tokens,
)
from dopd_vl.core.divergences import DIVERGENCES
from dopd_vl.core.projection import Projector, TokenScores

triton = pytest.importorskip("triton", reason="Triton comes with torch's builds for Linux alone")
from dopd_vl.core import kernels  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error:the loss goes on without its fused kernels")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TARGET, OTHER = Source("teacher", "privileged"), Source("student", "privileged")
BLOCK = 256


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of some hundred entries takes several."""
    monkeypatch.setattr(kernels, "BLOCK", BLOCK)
    monkeypatch.setattr(kernels, "WARPS", 1)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take all fp32 logits, and the factors of products stand in the dtype that they are rounded to."""
    if GPU:
        return

    def product(a: Tensor, b: Tensor) -> Tensor:
        with _disable_current_modes():
            return a.float() @ b.float()

    def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
        with _disable_current_modes():
            total.add_(a.float() @ b.float())

    monkeypatch.setattr(passes, "_failed", False)
    monkeypatch.setattr(passes, "takes_kernels", lambda logits: logits.dtype == torch.float32 and logits.numel() > 0)
    monkeypatch.setattr(Projector, "factor_dtype", property(lambda self: self.dtype))
    for module in (projection, fused_loss):
        monkeypatch.setattr(module, "as_factor", lambda tensor, dtype: tensor.to(dtype))
        monkeypatch.setattr(module, "product", product)
        monkeypatch.setattr(module, "add_product", add_product)


def logits_like(kind: str, rows: int, vocabulary: int, seed: int) -> Tensor:
    """Rows of logits `[rows, vocabulary]`."""
    logits = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    if kind == "very large":
        logits += 1e4
    elif kind == "a sure one":
        logits[:, vocabulary // 2] = 120.0
    elif kind == "mostly -inf":
        logits[:, 1:] = -torch.inf
    elif kind == "one -inf":
        logits[:, 0] = -torch.inf
    elif kind == "bf16":
        logits = logits.bfloat16().float()
    elif kind == "a NaN":
        logits[0, -1] = torch.nan
    return logits.to(DEVICE)


KINDS = ["ordinary", "very large", "a sure one", "mostly -inf", "one -inf", "bf16", "a NaN"]
VOCABULARIES = [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_mass_is_that_of_the_plain_pass(kind: str, vocabulary: int) -> None:
    logits = logits_like(kind, 3, vocabulary, seed=1)[:, : vocabulary or 1]
    ours, plain = kernels.mass_of(logits), passes.mass_of(logits.double())
    assert torch.allclose(ours.log().double(), plain.log(), rtol=1e-6, atol=1e-6, equal_nan=True)
    assert torch.allclose(ours.entropy().double(), plain.entropy(), atol=2e-5, equal_nan=True)


def test_a_row_without_mass_has_none() -> None:
    logits = torch.full((2, 100), -torch.inf, device=DEVICE)
    assert torch.isneginf(kernels.mass_of(logits).log()).all()
    assert torch.isneginf(passes.mass_of(logits).log()).all()


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_softmax_s_gradient_is_that_of_the_plain_pass(kind: str, vocabulary: int, out: torch.dtype) -> None:
    logits = logits_like(kind, 3, vocabulary, seed=2)
    log_z, factor = logits.logsumexp(-1, keepdim=True), torch.tensor([[0.3], [-2.0], [0.0]], device=DEVICE)
    exact = torch.empty_like(logits, dtype=torch.float64)
    passes.softmax_gradient(logits.double(), log_z.double(), factor.double(), exact)
    ours = torch.empty_like(logits, dtype=out)
    kernels.softmax_gradient(logits, log_z, factor, ours)
    rtol = 1e-5 if out == torch.float32 else 1e-2  # the interpreter cuts numbers off where a GPU rounds them
    assert torch.allclose(ours.double(), exact, rtol=rtol, equal_nan=True)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("clip", [math.inf, 0.01], ids=["whole", "clipped"])
def test_a_divergence_of_full_support_is_that_of_the_plain_pass(
    name: str, kind: str, vocabulary: int, clip: float
) -> None:
    for student, target in ((kind, "ordinary"), ("ordinary", kind)):
        pair = logits_like(student, 3, vocabulary, seed=3), logits_like(target, 3, vocabulary, seed=4)
        log_z = [logits.logsumexp(-1, keepdim=True) for logits in pair]
        factor = torch.tensor([[0.3], [-2.0], [0.0]], device=DEVICE)
        exact = torch.empty_like(pair[0], dtype=torch.float64)
        wide = [tensor.double() for two in zip(pair, log_z, strict=True) for tensor in two]
        value = passes.dense_divergence(name, *wide, factor.double(), exact, clip)
        ours = torch.empty_like(pair[0])
        arguments = pair[0], log_z[0], pair[1], log_z[1]
        # At logits of ten thousand, fp32 itself knows differences to 0.001 only.
        rtol, atol = (3e-5, 3e-6) if "very large" not in (student, target) else (2e-2, 2e-2)
        for found in (
            kernels.dense_divergence(name, *arguments, factor, ours, clip),
            kernels.dense_divergence(name, *arguments, entry_clip=clip),
        ):
            assert torch.allclose(found.double(), value, rtol=rtol, atol=atol, equal_nan=True)
        assert torch.allclose(ours.double(), exact, rtol=rtol, atol=atol, equal_nan=True)


# ---- the whole of scoring and learning -------------------------------------------------------------------------------

B, N, V, H = 2, 4, 640, 6
"""More than eight blocks of 64 for the one entry of a Top-1: it is found in two stages."""


def policies(dtype: torch.dtype, seed: int = 0) -> tuple[Projection, Projection, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = []
    for _ in range(2):
        tensors = torch.randn(B, N, H, generator=generator), 1.5 * torch.randn(V, H, generator=generator)
        pair.append(Projection(*(tensor.to(DEVICE, dtype) for tensor in tensors)))
    ids = torch.randint(V, (B, N), generator=generator).to(DEVICE)
    return *pair, ids, torch.ones(B, N, dtype=torch.bool, device=DEVICE)


def plans() -> dict[str, Plan]:
    weight = torch.rand(B, N, generator=torch.Generator().manual_seed(5)).to(DEVICE) + 0.1
    some, others = weight.clone(), weight.clone()
    some[:, ::2], others[:, 1::4] = 0.0, 0.0
    found = {
        f"{name} {support}": Plan((Term(TARGET, name, support, weight, top_k=1),))
        for name in DIVERGENCES
        for support in ("sampled", "top_k", "full")
    }
    return {
        **found,
        "policy gradient": Plan((PolicyGradient(weight),)),
        "union": Plan((Term(TARGET, "reverse_kl", "top_k", weight, 5, "union"),)),
        "clipped": Plan((Term(TARGET, "forward_kl", "full", weight, entry_clip=0.01),)),
        "dropped tail": Plan((Term(TARGET, "reverse_kl", "top_k", weight, 5, tail="drop"),)),
        "mixed": Plan(
            (
                Term(TARGET, "reverse_kl", "top_k", some, top_k=1),
                Term(TARGET, "forward_kl", "sampled", others),
                Term(TARGET, "js", "full", some),
                Term(TARGET, "reverse_kl", "full", others),
            )
        ),
    }


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("plan", plans().values(), ids=plans())
def test_losses_and_gradients_by_kernels_are_those_of_fp64(plan: Plan, dtype: torch.dtype) -> None:
    student, target, ids, mask = policies(dtype)
    tensors = student.hidden.requires_grad_(), student.weight.requires_grad_()
    out = fused_plan_loss(plan, student, {TARGET: target}, ids, mask, chunk_size=4)
    gradients = torch.autograd.grad(out.loss, tensors)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    target_logits = target.hidden.double() @ target.weight.double().T
    reference = execute_plan(plan, exact[0] @ exact[1].T, {TARGET: target_logits}, ids, mask)
    assert torch.allclose(out.token_loss.double(), reference, rtol=2e-5, atol=2e-6)
    expected = torch.autograd.grad(reduce(reference, mask, plan.reduction), exact)
    for ours, theirs in zip(gradients, expected, strict=True):
        # A sampled token of hardly any mass leaves a difference of probabilities that are nearly equal.
        rtol = 1e-4 if dtype == torch.float32 else 1e-2
        assert (ours.double() - theirs).norm() < rtol * theirs.norm() + 1e-6


@pytest.mark.usefixtures("as_on_a_gpu")
def test_scores_and_divergences_by_kernels_are_those_of_fp64() -> None:
    student, target, ids, mask = policies(torch.float32)
    wide = [Projection(policy.hidden.double(), policy.weight.double()) for policy in (student, target)]
    ours, exact = (score_tokens(policy, ids, mask, 1, chunk_size=5) for policy in (student, wide[0]))
    for name, values in vars(exact).items():
        assert torch.allclose(getattr(ours, name).double(), values.double(), rtol=1e-6, atol=2e-5), name
    for name in DIVERGENCES:
        found = divergence_of(name, student, target, mask, chunk_size=5)
        assert torch.allclose(found.double(), divergence_of(name, *wide, mask), rtol=1e-5, atol=2e-6), name


# ---- trips and waiting -----------------------------------------------------------------------------------------------


class Trips(TorchDispatchMode):
    """Counts tensors of at least `size` elements that are read or written, each once an operation.

    Views go nowhere; gathering and scattering touch some entries a row; an empty tensor is not written. What kernels
    read and write is counted entry by entry, by `counted_kernels`. Products are not counted.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size, self.trips, self.of = size, 0.0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        name = func.overloadpacket.__name__
        if not views and not name.startswith(("gather", "scatter", "empty", "new_empty", "mm", "addmm")):
            # What `copy_` and `fill_` write they do not read.
            read = args[1:] if name in ("copy_", "fill_", "zero_") else (args, kwargs or {})
            large = [x for x in (*tree_leaves(read), *tree_leaves(out)) if isinstance(x, Tensor)]
            found = sum(tensor.numel() >= self.size for tensor in large)
            self.trips += found
            self.of += [name] * found
        return out


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Trips]:
    if GPU:
        pytest.skip("what a kernel reads is seen by Triton's interpreter, on a CPU")
    from triton.runtime import interpreter

    modes: list[Trips] = []
    launch = interpreter.GridExecutor.__call__

    def entry_by_entry(method: Callable[..., Any], mask_of: Callable[..., Any]) -> Callable[..., Any]:
        def counting(builder: Any, *args: Any) -> Any:
            if modes:
                modes[-1].trips += float(mask_of(*args).data.sum()) / modes[-1].size
            return method(builder, *args)

        return counting

    def launched(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return launch(*args, **kwargs)

    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    monkeypatch.setattr(builder, "create_masked_load", entry_by_entry(load, lambda pointers, mask, *_: mask))
    monkeypatch.setattr(builder, "create_masked_store", entry_by_entry(store, lambda pointers, value, mask, *_: mask))
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)

    def start(size: int) -> Trips:
        modes.append(Trips(size))
        return modes[-1]

    return start


SMALL_CHANGE = 0.1
"""Numbers a row and the blocks' largest are no trips."""


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scoring_makes_two_trips(counted: Callable[[int], Trips], dtype: torch.dtype) -> None:
    student, _, ids, mask = policies(dtype)
    with counted(B * N * V) as trips:
        score_tokens(student, ids, mask, 1)
    assert trips.trips == pytest.approx(2, abs=SMALL_CHANGE), trips.of


ONES = torch.ones(B, N, device=DEVICE)
LEARNING: dict[str, tuple[int, tuple[Term | PolicyGradient, ...]]] = {
    **{
        f"{name} {support}": (trips, (Term(TARGET, name, support, ONES, top_k=1),))
        for name in DIVERGENCES
        for support, trips in (("sampled", 3), ("top_k", 3), ("full", 7))
    },
    "clipped": (7, (Term(TARGET, "forward_kl", "full", ONES, entry_clip=0.01),)),
    "policy gradient": (3, (PolicyGradient(ONES),)),
    # The target is projected for its mass there, and the student's likeliest are sought: one reading each.
    "student's top_k": (5, (Term(TARGET, "js", "top_k", ONES, 1, "student"),)),
    # As EOPD has it; and with a second tail, which takes one more reading.
    "two terms": (3, (PolicyGradient(ONES), Term(TARGET, "forward_kl", "top_k", ONES, 1, tail="renormalize_target"))),
    "two tails": (4, (Term(TARGET, "js", "sampled", ONES), Term(TARGET, "js", "top_k", ONES, 1))),
}


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("most", "terms"), LEARNING.values(), ids=LEARNING)
def test_learning_makes_three_trips_and_of_full_support_seven(
    counted: Callable[[int], Trips], dtype: torch.dtype, most: int, terms: tuple[Term | PolicyGradient, ...]
) -> None:
    student, target, ids, mask = policies(dtype)
    scores = {TARGET: score_tokens(target, ids, mask, 1)}
    student.hidden.requires_grad_()
    student.weight.requires_grad_()
    with counted(B * N * V) as trips:
        fused_plan_loss(Plan(terms), student, {TARGET: target}, ids, mask, scores, chunk_size=2 * B * N)
    if dtype == torch.bfloat16 and len(terms) > 1:
        most += 2  # the gradients of several terms add up in fp32 before they are rounded
    assert trips.trips == pytest.approx(most, abs=SMALL_CHANGE), trips.of


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for its accelerator: numbers and shapes that depend on a tensor's values."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_values = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")
        masks = name.startswith(("index", "_index")) and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        if name in by_values or name.startswith("unique") or masks:
            self.of.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_within_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    student, target, ids, mask = policies(torch.float32)
    scores: dict[Source, TokenScores] = {}
    for chunk_size in (B * N, 2):
        with Waits() as waits:
            scores[TARGET] = score_tokens(target, ids, mask, 1, chunk_size, store="cpu")
        assert waits.of == ["nonzero"]  # the places of the response tokens
    chunks_of = fused_loss.chunks_of

    def decided_on_the_host(*args: Any) -> Any:
        with _disable_current_modes():  # one copy to the host, whose tensors these are
            return list(chunks_of(*args))

    monkeypatch.setattr(fused_loss, "chunks_of", decided_on_the_host)
    for plan in plans().values():
        with Waits() as waits:
            fused_plan_loss(plan, student, {TARGET: target}, ids, mask, scores, chunk_size=2)
        assert waits.of == []


def test_a_sweep_copies_to_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    to_host = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or to_host(tensor))
    mask = torch.ones(B, N, dtype=torch.bool, device=DEVICE)
    for chunk_size in (1, 100):
        chunks = list(fused_loss.chunks_of(plans()["mixed"], mask, chunk_size))
        assert sum(len(chunk.rows[0]) for chunk in chunks) == B * N
    assert copies == [(4, B * N)] * 2


# ---- where there are none --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_kernel_that_cannot_be_built_is_said_once_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C compiler\nfurther lines")

    monkeypatch.setattr(kernels, "mass_of", broken)
    monkeypatch.setattr(passes, "_failed", False)
    student, _, ids, mask = policies(torch.float32)
    with pytest.warns(
        RuntimeWarning, match=r"without its fused kernels, more slowly: RuntimeError: no C compiler \("
    ) as said:
        scores = [score_tokens(student, ids, mask, 1, chunk_size=2) for _ in range(2)]
    assert len(said) == 1
    assert torch.equal(scores[0].logp, scores[1].logp)
    assert torch.isfinite(scores[0].logp).all()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_memory_that_does_not_suffice_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(kernels, "mass_of", full)
    monkeypatch.setattr(passes, "_failed", False)
    student, _, ids, mask = policies(torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        score_tokens(student, ids, mask, 1)
    assert passes.kernels() is kernels


@pytest.mark.usefixtures("as_on_a_gpu")
def test_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setenv(passes.SWITCH, "0")
    monkeypatch.setattr(kernels, "mass_of", lambda *_: pytest.fail("a kernel ran"))
    student, _, ids, mask = policies(torch.float32)
    score_tokens(student, ids, mask, 1)
    assert not recwarn.list


BUILD = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dopd_vl.core import kernels

def build(kernel, out="*fp32", **constants):
    numbers = ("row_stride", "target_stride", "out_stride", "vocabulary")
    kinds = {"clip": "fp32", "out": out, **dict.fromkeys(numbers, "i32")}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
    values = {(place,): constants[name] for place, name in enumerate(kernel.arg_names) if name in constants}
    for capability in (80, 90):
        source = ASTSource(kernel, signature, values)
        target = GPUTarget("cuda", capability, 32)
        print(len(triton.compile(source, target=target, options={"num_warps": kernels.WARPS}).asm["cubin"]))


build(kernels._mass, LOWEST=torch.finfo(torch.float32).min, LEAST=-200.0, BLOCK=kernels.BLOCK)
for out in ("*fp32", "*bf16"):
    build(kernels._softmax_gradient, out, BLOCK=kernels.BLOCK)
for number in kernels.NUMBERS.values():
    for clips in (False, True):
        constants = {"NAME": number, "GRADIENT": True, "CLIPS": clips, "FLOOR": -100.0, "BLOCK": kernels.BLOCK}
        build(kernels._dense_divergence, "*bf16", **constants)
build(kernels._dense_divergence, NAME=2, GRADIENT=False, CLIPS=False, FLOOR=-100.0, BLOCK=kernels.BLOCK)
"""


def test_every_kernel_is_built_for_an_a100_and_an_h100(tmp_path: Any) -> None:
    # By the compiler alone, which needs no GPU: the interpreter takes what it would refuse.
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    built = subprocess.run([sys.executable, "-c", BUILD], env=env, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert len(built.stdout.split()) == 20
