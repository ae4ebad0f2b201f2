"""The fused form against the plain one: same values, same gradients, for any chunk size."""

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dopd_vl.core import (
    DopdOutput,
    DopdSettings,
    Plan,
    Projection,
    Source,
    Term,
    dopd_loss,
    execute_plan,
    fused_dopd_loss,
    fused_plan_loss,
    score_sampled,
)
from dopd_vl.core.divergences import DIVERGENCES, SUPPORTS, TAILS, TOP_K_SOURCES, entropy, log_softmax, sampled_logp
from dopd_vl.core.routing import THRESHOLD_SCOPES

NAN = float("nan")
B, N, V, H_S, H_T = 3, 5, 11, 4, 6

Batch = dict[str, Tensor]


def make_batch(seed: int = 0, dtype: torch.dtype = torch.float64, tokens: float = 0.7) -> Batch:
    """Hidden states, heads, ids and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "student_hidden": normal(B, N, H_S),
        "student_head": normal(V, H_S),
        "teacher_hidden": normal(B, N, H_T),
        "teacher_head": normal(V, H_T),
        "privileged_student_hidden": normal(B, N, H_S),
        "response_ids": torch.randint(V, (B, N), generator=generator),
        "response_mask": torch.rand(B, N, generator=generator) < tokens,
    }


def fused(batch: Batch, settings: DopdSettings, chunk_size: int) -> tuple[DopdOutput, Tensor, Tensor]:
    """The fused loss and its gradients in the student's hidden states and head."""
    hidden, head = (batch[name].clone().requires_grad_() for name in ("student_hidden", "student_head"))
    changed = {**batch, "student_hidden": hidden, "student_head": head}
    out = fused_dopd_loss(**changed, settings=settings, chunk_size=chunk_size)
    out.loss.backward()
    return out, hidden.grad, head.grad


def plain(batch: Batch, settings: DopdSettings) -> tuple[DopdOutput, Tensor, Tensor]:
    hidden, head = (batch[name].clone().requires_grad_() for name in ("student_hidden", "student_head"))
    out = dopd_loss(
        hidden @ head.T,
        batch["teacher_hidden"] @ batch["teacher_head"].T,
        batch["privileged_student_hidden"] @ batch["student_head"].T,
        batch["response_ids"],
        batch["response_mask"],
        settings,
    )
    out.loss.backward()
    return out, hidden.grad, head.grad


def assert_same(first: tuple[DopdOutput, Tensor, Tensor], second: tuple[DopdOutput, Tensor, Tensor]) -> None:
    assert torch.equal(first[0].regime, second[0].regime)
    for name in ("loss", "token_loss", "gap", "teacher_logp", "privileged_student_logp"):
        assert torch.allclose(getattr(first[0], name), getattr(second[0], name), atol=1e-12), name
    for name in ("gap", "teacher_prob", "student_prob"):
        ours, theirs = (getattr(result[0].thresholds, name) for result in (first, second))
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, atol=1e-12), name
    assert torch.allclose(first[1], second[1], atol=1e-12), "gradient in the hidden states"
    assert torch.allclose(first[2], second[2], atol=1e-12), "gradient in the head"


@hypothesis.settings(max_examples=20)
@given(st.data())
def test_fused_equals_plain_for_any_chunk_size(data: st.DataObject):
    batch = make_batch(data.draw(st.integers(0, 1000)), tokens=data.draw(st.sampled_from([0.1, 0.7, 1.0])))
    settings = DopdSettings(
        top_k=data.draw(st.integers(1, V)),
        threshold_scope=data.draw(st.sampled_from(THRESHOLD_SCOPES)),
        top_k_source=data.draw(st.sampled_from(TOP_K_SOURCES)),
        tail=data.draw(st.sampled_from(TAILS)),
    )
    assert_same(fused(batch, settings, data.draw(st.integers(1, B * N + 3))), plain(batch, settings))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("support", SUPPORTS)
def test_any_plan_is_executed_as_the_reference_does(name: str, support: str):
    batch = make_batch(5)
    ids, mask = batch["response_ids"], batch["response_mask"]
    privileged, plain_view = Source("teacher", "privileged"), Source("student", "plain")
    weights = torch.rand(2, B, N, generator=torch.manual_seed(0)) - 0.3
    weights[0, :, ::2] = 0
    plan = Plan(
        (
            Term(privileged, name, support, weights[0], top_k=3),
            Term(plain_view, "js", "full", weights[1]),
        )
    )
    bias = torch.randn(V, generator=torch.manual_seed(1), dtype=torch.float64).requires_grad_()
    hidden, head = (batch[key].requires_grad_() for key in ("student_hidden", "student_head"))
    sources = {
        privileged: Projection(batch["teacher_hidden"], batch["teacher_head"]),
        plain_view: Projection(batch["privileged_student_hidden"], batch["student_head"].detach()),
    }
    ours = fused_plan_loss(plan, Projection(hidden, head, bias), sources, ids, mask, chunk_size=4)
    source_logits = {source: p.hidden @ p.weight.T for source, p in sources.items()}
    reference = execute_plan(plan, hidden @ head.T + bias, source_logits, ids, mask)
    assert torch.allclose(ours, reference, atol=1e-12)
    ways = torch.rand(B, N, generator=torch.manual_seed(2), dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((ours * ways).sum(), (hidden, head, bias)),
        torch.autograd.grad((reference * ways).sum(), (hidden, head, bias)),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_scores_are_of_the_whole_distribution_and_zero_where_masked():
    batch = make_batch(2)
    projection = Projection(batch["teacher_hidden"].requires_grad_(), batch["teacher_head"].requires_grad_())
    mask = batch["response_mask"]
    logp = log_softmax(batch["teacher_hidden"] @ batch["teacher_head"].T).detach()
    expected = (
        sampled_logp(logp, batch["response_ids"]),
        entropy(logp),
        logp.sort(descending=True).values[..., :3].exp().sum(-1),
    )
    for chunk_size in (1, 4, 100):
        scores = score_sampled(projection, batch["response_ids"], mask, 3, chunk_size)
        for ours, theirs in zip(scores, expected, strict=True):
            assert torch.allclose(ours, theirs * mask, atol=1e-12)
            assert not ours.requires_grad
    # K at or above the vocabulary keeps everything.
    assert torch.allclose(score_sampled(projection, batch["response_ids"], mask, V + 1).top_k_mass, mask.double())


def test_no_gradient_reaches_the_privileged_policies():
    batch = make_batch(3)
    names = [name for name in batch if name.endswith(("hidden", "head"))]
    for name in names:
        batch[name].requires_grad_()
    out = fused_dopd_loss(**batch, settings=DopdSettings(top_k=2), chunk_size=4)
    out.loss.backward()
    assert {name for name in names if batch[name].grad is not None} == {"student_hidden", "student_head"}
    assert not any(t.requires_grad for t in (out.gap, out.teacher_logp, out.privileged_student_logp))


def test_the_head_learns_from_the_plain_view_alone():
    # The privileged student shares the head. Its own use of it must not count: the gradient is that of the plain form,
    # whose privileged logits are constants.
    batch = make_batch(4)
    head = batch["student_head"].clone().requires_grad_()
    out = fused_dopd_loss(**{**batch, "student_head": head}, settings=DopdSettings(top_k=2), chunk_size=2)
    out.loss.backward()
    assert torch.allclose(head.grad, plain(batch, DopdSettings(top_k=2))[2], atol=1e-12)


@pytest.mark.parametrize("junk", [NAN, float("inf"), 1e30])
def test_what_stands_at_masked_positions_changes_nothing(junk: float):
    batch = make_batch(6)
    masked = ~batch["response_mask"]
    dirty = {
        name: x.masked_fill(masked[..., None], junk) if name.endswith("hidden") else x for name, x in batch.items()
    }
    dirty["response_ids"] = batch["response_ids"].masked_fill(masked, -100)
    settings = DopdSettings(top_k=2)
    clean_result, dirty_result = fused(batch, settings, 4), fused(dirty, settings, 4)
    assert_same(clean_result, dirty_result)
    assert (dirty_result[1][masked] == 0).all()


def test_without_a_token_loss_and_gradients_are_zero():
    batch = make_batch(7, tokens=0.0)
    empty = {name: x[:, :0] if x.shape[:2] == (B, N) else x for name, x in batch.items()}
    for case in (batch, empty):
        out, hidden_gradient, head_gradient = fused(case, DopdSettings(top_k=2), 4)
        assert out.loss.item() == 0.0
        assert (hidden_gradient == 0).all()
        assert (head_gradient == 0).all()
        assert (out.regime == -1).all()


def test_chunked_values_never_hold_the_whole_batch_of_logits():
    # What is saved for the backward pass: nothing of [tokens, vocabulary], not even one chunk of it.
    batch = make_batch(8, tokens=1.0)
    saved: list[tuple[int, ...]] = []
    hidden, head = (batch[name].requires_grad_() for name in ("student_hidden", "student_head"))

    def record(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        changed = {**batch, "student_hidden": hidden, "student_head": head}
        fused_dopd_loss(**changed, settings=DopdSettings(top_k=2), chunk_size=4)
    assert saved
    assert not [shape for shape in saved if shape[-1:] == (V,)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_hidden_states_give_single_precision_losses_and_finite_gradients(dtype: torch.dtype):
    settings = DopdSettings(top_k=3)
    batch = make_batch(9, dtype)
    out, hidden_gradient, head_gradient = fused(batch, settings, 4)
    assert out.token_loss.dtype == torch.float32
    assert (hidden_gradient.dtype, head_gradient.dtype) == (dtype, dtype)
    assert hidden_gradient.isfinite().all()
    assert head_gradient.isfinite().all()
    # And they are the plain form's but for the rounding of the logits.
    reference = plain(batch, settings)
    assert torch.allclose(out.token_loss, reference[0].token_loss, atol=1e-6)
    assert torch.allclose(hidden_gradient, reference[1], atol=2e-3)
    assert torch.allclose(head_gradient, reference[2], atol=2e-2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student_hidden": torch.full((B, N, H_S), NAN)}, r"student_hidden holds NaN or \+inf"),
        ({"teacher_hidden": torch.full((B, N, H_T), -torch.inf)}, r"teacher_hidden .* at a response token"),
        (
            {"teacher_head": torch.zeros(V, H_S)},
            r"teacher_head must be \[V, 6\] to project teacher_hidden, got \(11, 4\)",
        ),
        (
            {"student_head": torch.zeros(V, 9)},
            r"student_head must be \[V, 4\] to project student_hidden, got \(11, 9\)",
        ),
        ({"privileged_student_hidden": torch.zeros(B, N, 9)}, r"to project privileged_student_hidden"),
        ({"teacher_head": torch.zeros(V + 1, H_T)}, r"teacher_head has a vocabulary of 12, student_head of 11"),
        ({"teacher_hidden": torch.zeros(B, N + 1, H_T)}, r"teacher_hidden must be \[B, N, .\]"),
        ({"response_ids": torch.full((B, N), V)}, r"response_ids must be in \[0, 11\)"),
        ({"response_mask": torch.ones(B, N + 1)}, r"response_mask has shape"),
    ],
)
def test_unusable_tensors_are_named(changed: Batch, message: str):
    batch = {**make_batch(tokens=1.0, dtype=torch.float32), **changed}
    with pytest.raises(ValueError, match=message):
        fused_dopd_loss(**batch, settings=DopdSettings(top_k=2))


def test_a_chunk_size_or_top_k_that_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"chunk_size=0 must be at least 1"):
        fused_dopd_loss(**make_batch(), settings=DopdSettings(top_k=2), chunk_size=0)
    with pytest.raises(ValueError, match=r"top_k=128 is larger than the vocabulary of 11 entries"):
        fused_dopd_loss(**make_batch())
