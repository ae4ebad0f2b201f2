"""What is computed from hidden states and heads of any dtype against fp64, whatever autocast the caller has on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dopd_vl.core import (
    Plan,
    Projection,
    Source,
    Term,
    divergence_of,
    execute_plan,
    fused_plan_loss,
    reduce,
    score_tokens,
)
from dopd_vl.core.divergences import DIVERGENCES, divergence, entropy, log_softmax, sampled_logp

B, N, V, H = 2, 6, 700, 16
TARGET = Source("teacher", "privileged")


class Setup(NamedTuple):
    """Dtypes, and by how much a gradient may be off: the gradient in the logits is rounded to the compute dtype."""

    stored: torch.dtype
    computed: torch.dtype | None
    gradient_rtol: float


SETUPS = {
    "fp32": Setup(torch.float32, None, 1e-4),
    "bf16 weights": Setup(torch.bfloat16, None, 1e-2),
    "fp32 weights, bf16 products": Setup(torch.float32, torch.bfloat16, 1e-2),
}


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return SETUPS[request.param]


@contextmanager
def autocast(on: bool = True) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        yield


def policies(setup: Setup) -> tuple[Projection, Projection, Projection, Projection, Tensor, Tensor]:
    """Student and target; the same in fp64, of what they are after the products' rounding; ids and mask."""
    generator = torch.Generator().manual_seed(0)
    given, exact = [], []
    for _ in range(2):
        hidden = torch.randn(B, N, H, generator=generator).to(setup.stored)
        weight = torch.randn(V, H, generator=generator).to(setup.stored)
        given.append(Projection(hidden, weight, dtype=setup.computed))
        exact.append(Projection(*(t.to(given[-1].compute_dtype).double() for t in (hidden, weight))))
    ids = torch.randint(V, (B, N), generator=generator)
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1, 4:] = False
    return *given, *exact, ids, mask


def logits_of(projection: Projection) -> Tensor:
    return projection.hidden @ projection.weight.T


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def test_scores_do_not_depend_on_autocast(setup: Setup) -> None:
    student, _, exact, _, ids, mask = policies(setup)
    with autocast():
        scores = score_tokens(student, ids, mask, top_k=5, chunk_size=4)
    logits = logits_of(exact)
    logp = log_softmax(logits)
    expected = {
        "logp": sampled_logp(logp, ids),
        "entropy": entropy(logp),
        "log_z": logits.logsumexp(-1),
        "top_k_logp": logp.topk(5).values,
        "tail_logp": logp.sort().values[..., :-5].logsumexp(-1),
    }
    for name, value in expected.items():
        assert torch.allclose(getattr(scores, name)[mask].double(), value[mask], rtol=1e-6, atol=2e-5), name


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_of_two_policies_does_not_depend_on_autocast(setup: Setup, name: str) -> None:
    student, target, *exact, _, mask = policies(setup)
    with autocast():
        ours = divergence_of(name, student, target, mask, chunk_size=4)
    expected = divergence(name, *(log_softmax(logits_of(policy)) for policy in exact))
    assert torch.allclose(ours[mask].double(), expected[mask], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("support", ["sampled", "top_k", "full"])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("of", ["loss", "token losses"])
def test_losses_and_gradients_do_not_depend_on_autocast(setup: Setup, name: str, support: str, of: str) -> None:
    student, target, exact_student, exact_target, ids, mask = policies(setup)
    plan = Plan((Term(TARGET, name, support, torch.ones(B, N), top_k=5),))
    tensors = student.hidden.requires_grad_(), student.weight.requires_grad_()
    with autocast():
        out = fused_plan_loss(plan, student, {TARGET: target}, ids, mask, chunk_size=4)
        # The gradient of the loss was taken in the forward pass; that of single token losses takes a second sweep.
        loss = out.loss if of == "loss" else reduce(out.token_loss, mask, "sequence")
        gradients = torch.autograd.grad(loss, tensors)
    exact = exact_student.hidden.requires_grad_(), exact_student.weight.requires_grad_()
    reference = execute_plan(plan, logits_of(exact_student), {TARGET: logits_of(exact_target)}, ids, mask)
    assert torch.allclose(out.token_loss.double(), reference, rtol=1e-5, atol=2e-6)
    expected_gradients = torch.autograd.grad(reduce(reference, mask, "sequence"), exact)
    for ours, expected, given in zip(gradients, expected_gradients, tensors, strict=True):
        assert ours.dtype == given.dtype
        assert relative_error(ours, expected) < setup.gradient_rtol


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_reference_does_not_depend_on_autocast(name: str) -> None:
    student, target, *exact, ids, mask = policies(SETUPS["fp32"])
    plan = Plan((Term(TARGET, name, "full", torch.ones(B, N)),))
    logits = [logits_of(policy).requires_grad_() for policy in (student, target)]
    with autocast():
        ours = execute_plan(plan, logits[0], {TARGET: logits[1]}, ids, mask)
        (gradient,) = torch.autograd.grad(ours.sum(), logits[:1])
    exact_logits = [logits_of(policy).requires_grad_() for policy in exact]
    expected = execute_plan(plan, exact_logits[0], {TARGET: exact_logits[1]}, ids, mask)
    assert torch.allclose(ours.double(), expected, rtol=1e-5, atol=2e-6)
    assert relative_error(gradient, torch.autograd.grad(expected.sum(), exact_logits[:1])[0]) < 1e-5


def test_a_constant_projection_keeps_its_dtype() -> None:
    hidden, weight, bias = (
        torch.randn(1, 2, 3, requires_grad=True),
        torch.randn(5, 3, requires_grad=True),
        torch.zeros(5),
    )
    constant = Projection(hidden, weight, bias, torch.bfloat16).constant()
    assert constant.compute_dtype == torch.bfloat16
    assert not constant.hidden.requires_grad
    assert not constant.weight.requires_grad
    assert Projection(hidden, weight.bfloat16()).compute_dtype == torch.bfloat16
