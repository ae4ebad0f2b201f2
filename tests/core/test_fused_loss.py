"""The fused form against the plain one: same values, same gradients, for any chunk size."""

import math
from itertools import product

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dopd_vl.core import (
    Plan,
    PolicyGradient,
    Projection,
    Source,
    Term,
    divergence_of,
    execute_plan,
    fused_plan_loss,
    projection,
    reduce,
    rows_to_keep,
    score_tokens,
)
from dopd_vl.core.divergences import (
    DIVERGENCES,
    SUPPORTS,
    TAILS,
    TOP_K_SOURCES,
    divergence,
    entropy,
    log_softmax,
    sampled_logp,
)
from dopd_vl.core.passes import top_k_of
from dopd_vl.core.plan import TERM_TAILS
from dopd_vl.core.projection import Projector, chunk_size_for
from dopd_vl.core.routing import THRESHOLD_SCOPES
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import DopdOutput, dopd_loss, fused_dopd_loss

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
    ours = fused_plan_loss(plan, Projection(hidden, head, bias), sources, ids, mask, chunk_size=4).token_loss
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


def test_scores_are_of_the_whole_distribution():
    batch = make_batch(2)
    projection = Projection(batch["teacher_hidden"].requires_grad_(), batch["teacher_head"].requires_grad_())
    ids, mask = batch["response_ids"], batch["response_mask"]
    logp = log_softmax(batch["teacher_hidden"] @ batch["teacher_head"].T).detach()
    own = torch.nn.functional.one_hot(ids, V).bool()
    expected = {
        "logp": sampled_logp(logp, ids),
        "rest_logp": logp.masked_fill(own, -torch.inf).logsumexp(-1),
        "entropy": entropy(logp),
        "log_z": (batch["teacher_hidden"] @ batch["teacher_head"].T).logsumexp(-1),
        "top_k_ids": logp.sort(descending=True).indices[..., :3].int(),
        "top_k_logp": logp.sort(descending=True).values[..., :3],
        "tail_logp": logp.sort(descending=True).values[..., 3:].logsumexp(-1),
    }
    for chunk_size in (1, 4, 100):
        scores = score_tokens(projection, ids, mask, 3, chunk_size)
        for name, theirs in expected.items():
            ours = getattr(scores, name)
            assert torch.allclose(ours[mask], theirs[mask], atol=1e-12), name
            assert not ours.requires_grad
            masked = -torch.inf if name in ("rest_logp", "top_k_logp", "tail_logp") else 0
            assert (ours[~mask] == masked).all(), name
    # K at or above the vocabulary keeps everything.
    everything = score_tokens(projection, ids, mask, V + 1)
    assert torch.allclose(everything.top_k_logp.exp().sum(-1), mask.double())
    assert torch.isneginf(everything.tail_logp).all()


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
    # And they are the plain form's in fp64, of the same numbers; gradients but for the rounding of that in the logits.
    reference = plain({name: x.double() if x.is_floating_point() else x for name, x in batch.items()}, settings)
    assert torch.allclose(out.token_loss.double(), reference[0].token_loss, atol=1e-6)
    assert torch.allclose(hidden_gradient.double(), reference[1], atol=2e-3)
    assert torch.allclose(head_gradient.double(), reference[2], atol=2e-2)


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


@pytest.mark.parametrize(
    ("device", "vocabulary", "dtype", "rows"),
    [
        ("cpu", 151_936, torch.float32, 256),
        ("cpu", 11, torch.bfloat16, 256),
        ("cuda", 151_936, torch.bfloat16, 2048),
        ("cuda:1", 151_936, torch.float32, 1664),
        ("cuda", 262_144, torch.float32, 1024),
        ("cuda", 11, torch.float32, 2048),
        ("cuda", 10**8, torch.float32, 2),
        ("cuda", 10**10, torch.float32, 1),
    ],
)
def test_a_chunk_is_as_large_as_its_device_has_room_for(
    device: str, vocabulary: int, dtype: torch.dtype, rows: int
) -> None:
    assert chunk_size_for(device, vocabulary, dtype) == rows


def test_without_a_chunk_size_it_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "CPU_CHUNK_SIZE", 4)
    batch = make_batch(20, tokens=1.0)
    seen = []
    logits = Projector.logits

    def watched(self: Projector, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        seen.append(len(rows[0]))
        return logits(self, rows)

    monkeypatch.setattr(Projector, "logits", watched)
    for chunk_size in (None, 7):
        weight = torch.ones(B, N)
        fused_plan_loss(
            Plan((PolicyGradient(weight),)),
            Projection(batch["student_hidden"], batch["student_head"]),
            {},
            batch["response_ids"],
            batch["response_mask"],
            chunk_size=chunk_size,
        )
    assert seen == [4, 4, 4, 3, 7, 7, 1]


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_distributions_are_compared_at_a_terms_temperature(name: str, others: bool):
    batch = make_batch(31)
    ids, mask = batch["response_ids"], batch["response_mask"]
    teacher, weight = Source("teacher", "privileged"), torch.rand(B, N, generator=torch.manual_seed(0)) - 0.3
    terms = [Term(teacher, name, "full", weight, temperature=2.0, entry_clip=0.5)]
    if others:
        terms += [Term(teacher, "js", "full", weight + 1), Term(teacher, "js", "full", weight, temperature=0.7)]
        terms += [Term(teacher, "reverse_kl", "top_k", weight, top_k=3)]
    hidden, head = (batch[key].requires_grad_() for key in ("student_hidden", "student_head"))
    target = Projection(batch["teacher_hidden"], batch["teacher_head"])
    plan = Plan(tuple(terms))
    fused = fused_plan_loss(plan, Projection(hidden, head), {teacher: target}, ids, mask, chunk_size=4)
    target_logits = target.hidden @ target.weight.T
    reference = execute_plan(plan, hidden @ head.T, {teacher: target_logits}, ids, mask)
    assert torch.allclose(fused.token_loss, reference, atol=1e-12)
    expected = gradients_of(reduce(reference, mask, "sequence"), hidden, head)
    for ours, theirs in zip(gradients_of(fused.loss, hidden, head), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    # Softmax of logits / 2 of a student (0, 2 ln 3) and a target (2 ln 3, 0): (1/4, 3/4) and (3/4, 1/4).
    by_hand = Plan((Term(teacher, "forward_kl", "full", torch.ones(1, 1), temperature=2.0),))
    pair = (torch.tensor([[[0.0, 2 * math.log(3)]]]), torch.tensor([[[2 * math.log(3), 0.0]]]))
    loss = execute_plan(by_hand, pair[0], {teacher: pair[1]}, torch.zeros(1, 1).long(), torch.ones(1, 1).bool())
    assert loss.item() == pytest.approx(0.5 * math.log(3))  # 3/4 ln 3 - 1/4 ln 3


PRIVILEGED, PLAIN = Source("teacher", "privileged"), Source("student", "plain")
ROW_TERMS = [
    (name, support, tail, source)
    for name, support, tail, source in product(DIVERGENCES, SUPPORTS, TERM_TAILS, TOP_K_SOURCES)
    if (support == "top_k" or (tail == "bucket" and source == "target"))
    or (support == "sampled" and tail == "drop" and source == "target")
]


def gradients_of(value: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, tensors, retain_graph=True))


@pytest.mark.parametrize("scored", [True, False], ids=["from scores", "projected"])
@pytest.mark.parametrize("clip", [math.inf, 0.03], ids=["whole", "clipped"])
@pytest.mark.parametrize(("name", "support", "tail", "source"), ROW_TERMS)
def test_every_kind_of_term_in_single_precision(
    name: str, support: str, tail: str, source: str, clip: float, scored: bool
):
    # A policy as sure as a trained one: logits of up to some 30 nats, in fp32, against the plain form in fp64.
    batch = {k: v * 2 if v.is_floating_point() else v for k, v in make_batch(11).items()}
    ids, mask = batch["response_ids"], batch["response_mask"]
    weight = torch.rand(B, N, generator=torch.manual_seed(0), dtype=torch.float64) - 0.3
    plan = Plan((Term(PRIVILEGED, name, support, weight, 3, source, tail, clip),))
    hidden, head = (batch[key].requires_grad_() for key in ("student_hidden", "student_head"))
    target_logits = batch["teacher_hidden"] @ batch["teacher_head"].T
    reference = execute_plan(plan, hidden @ head.T, {PRIVILEGED: target_logits}, ids, mask)
    expected = gradients_of(reduce(reference, mask, "sequence"), hidden, head)

    narrow_hidden, narrow_head = (t.detach().float().requires_grad_() for t in (hidden, head))
    target = Projection(batch["teacher_hidden"].float(), batch["teacher_head"].float())
    scores = {PRIVILEGED: score_tokens(target, ids, mask, 5)} if scored else {}
    loss, token_loss, student_entropy, kept_mass = fused_plan_loss(
        plan, Projection(narrow_hidden, narrow_head), {PRIVILEGED: target}, ids, mask, scores, chunk_size=4
    )
    assert torch.allclose(token_loss.double(), reference, rtol=1e-5, atol=1e-6)
    student_logp = log_softmax(hidden @ head.T).detach()
    assert torch.allclose(student_entropy[mask].double(), entropy(student_logp)[mask], atol=1e-5)
    assert kept_mass[mask].isnan().all() == (support != "top_k")
    if (support, source) == ("top_k", "student"):
        assert torch.allclose(kept_mass[mask].double(), student_logp.topk(3).values.exp().sum(-1)[mask], atol=1e-6)
    for ours, theirs in zip(gradients_of(loss, narrow_hidden, narrow_head), expected, strict=True):
        assert (ours.double() - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_what_is_scored_is_not_needed_again():
    batch = make_batch(12)
    ids, mask = batch["response_ids"], batch["response_mask"]
    ones = torch.ones(B, N)
    scores = {PRIVILEGED: score_tokens(Projection(batch["teacher_hidden"], batch["teacher_head"]), ids, mask, 3)}
    student = Projection(batch["student_hidden"], batch["student_head"])
    enough = Plan((Term(PRIVILEGED, "js", "top_k", ones, top_k=3), Term(PRIVILEGED, "js", "sampled", ones)))
    assert rows_to_keep(enough, scores) == {}
    assert fused_plan_loss(enough, student, {}, ids, mask, scores).loss > 0
    for term in (
        Term(PRIVILEGED, "js", "top_k", ones, top_k=4),
        Term(PRIVILEGED, "js", "top_k", ones, top_k=3, top_k_source="union"),
        Term(PRIVILEGED, "js", "full", ones),
    ):
        assert set(rows_to_keep(Plan((term,)), scores)) == {PRIVILEGED}
        with pytest.raises(ValueError, match="needs the hidden states and the head of teacher/privileged"):
            fused_plan_loss(Plan((term,)), student, {}, ids, mask, scores)
    some = Plan((Term(PRIVILEGED, "js", "full", ones.tril()), Term(PLAIN, "js", "full", ones.triu(1))))
    assert torch.equal(rows_to_keep(some, {})[PRIVILEGED], ones.tril().bool())


def test_policy_gradient_is_the_advantage_times_the_score_function():
    batch = make_batch(13)
    ids, mask = batch["response_ids"], batch["response_mask"]
    advantage = torch.randn(B, N, generator=torch.manual_seed(1), dtype=torch.float64)
    hidden, head = (batch[key].requires_grad_() for key in ("student_hidden", "student_head"))
    plan = Plan((PolicyGradient(advantage), Term(PLAIN, "js", "full", torch.ones(B, N).tril())))
    source = Projection(batch["privileged_student_hidden"], batch["student_head"].detach())
    loss, token_loss, *_ = fused_plan_loss(plan, Projection(hidden, head), {PLAIN: source}, ids, mask, chunk_size=3)
    reference = execute_plan(plan, hidden @ head.T, {PLAIN: source.hidden @ source.weight.T}, ids, mask)
    assert torch.allclose(token_loss, reference, atol=1e-12)
    only = Plan(plan.terms[:1])
    assert torch.allclose(execute_plan(only, hidden @ head.T, {}, ids, mask), -advantage * mask, atol=1e-12)
    for ours, theirs in zip(
        gradients_of(loss, hidden, head), gradients_of(reduce(reference, mask, "sequence"), hidden, head), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)
    # d(-A s/sg s)/dz = A (s - onehot): by hand for one token.
    at = tuple(mask.nonzero()[0].tolist())
    slope = gradients_of(execute_plan(only, hidden @ head.T, {}, ids, mask)[at], hidden)[0][at]
    probabilities = (hidden[at] @ head.T).softmax(-1)
    onehot = torch.nn.functional.one_hot(ids[at], V)
    assert torch.allclose(slope, advantage[at] * (probabilities - onehot) @ head, atol=1e-12)


def test_loss_and_token_loss_give_gradients_in_any_mix_and_more_than_once():
    batch = make_batch(14)
    hidden, head = (batch[name].requires_grad_() for name in ("student_hidden", "student_head"))
    out = fused_dopd_loss(**batch, settings=DopdSettings(top_k=2), chunk_size=4)
    weights = torch.rand(B, N, generator=torch.manual_seed(2), dtype=torch.float64)
    first = gradients_of(out.loss, hidden, head)
    assert all(
        torch.allclose(a, b, atol=1e-12) for a, b in zip(first, gradients_of(out.loss, hidden, head), strict=True)
    )
    tokens = gradients_of((out.token_loss * weights).sum(), hidden, head)
    mixed = gradients_of(3 * out.loss - (out.token_loss * weights).sum(), hidden, head)
    for mix, a, b in zip(mixed, first, tokens, strict=True):
        assert torch.allclose(mix, 3 * a - b, atol=1e-12)


@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_a_frozen_head_or_body_costs_no_gradient(frozen: str):
    batch = make_batch(15)
    free = "student_hidden" if frozen == "head" else "student_head"
    hidden_gradient, head_gradient = plain(batch, DopdSettings(top_k=2))[1:]
    batch[free].requires_grad_()
    out = fused_dopd_loss(**batch, settings=DopdSettings(top_k=2), chunk_size=4)
    out.loss.backward()
    assert torch.allclose(batch[free].grad, hidden_gradient if frozen == "head" else head_gradient, atol=1e-12)


def test_a_tied_head_adds_its_gradient_to_the_embedding():
    embedding = torch.randn(V, H_S, dtype=torch.float64, generator=torch.manual_seed(3)).requires_grad_()
    batch = make_batch(16)
    gradients = []
    for loss_of in (fused_dopd_loss, None):
        hidden = embedding[batch["response_ids"]] * 2
        changed = {**batch, "student_hidden": hidden, "student_head": embedding}
        if loss_of is None:
            logits = [
                hidden @ embedding.T,
                batch["teacher_hidden"] @ batch["teacher_head"].T,
                batch["privileged_student_hidden"] @ embedding.T.detach(),
            ]
            loss = dopd_loss(*logits, batch["response_ids"], batch["response_mask"], DopdSettings(top_k=2)).loss
        else:
            loss = loss_of(**changed, settings=DopdSettings(top_k=2), chunk_size=4).loss
        gradients += gradients_of(loss, embedding)
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [3000, 4096, 5001])
def test_top_k_in_two_stages_finds_the_same_entries(vocabulary: int):
    logits = torch.randn(6, vocabulary, generator=torch.manual_seed(4))
    logits[1, -1], logits[2, :4] = 9.0, 9.0 + torch.arange(4)
    for top_k in (1, 5):
        values, ids = top_k_of(logits, top_k)
        assert torch.equal(values, logits.topk(top_k).values)
        assert torch.equal(ids, logits.topk(top_k).indices)


def test_what_takes_most_room_can_be_kept_on_another_device():
    batch = make_batch(17)
    projection = Projection(batch["teacher_hidden"], batch["teacher_head"])
    scores = score_tokens(projection, batch["response_ids"], batch["response_mask"], 3, store="meta")
    stored = {name for name, tensor in vars(scores).items() if tensor.device.type == "meta"}
    assert stored == {"top_k_ids", "top_k_logp"}


def test_divergence_of_two_policies_is_the_plain_one():
    batch = make_batch(18)
    pair = (
        Projection(batch["student_hidden"], batch["student_head"]),
        Projection(batch["teacher_hidden"], batch["teacher_head"]),
    )
    logp = [log_softmax(p.hidden @ p.weight.T) for p in pair]
    ours = divergence_of("reverse_kl", *pair, batch["response_mask"], chunk_size=4)
    assert torch.allclose(ours, divergence("reverse_kl", *logp) * batch["response_mask"], atol=1e-12)


def test_a_lora_wrapped_head_teaches_its_adapter():
    batch = make_batch(19)
    generator = torch.Generator().manual_seed(5)
    down, up = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, H_S), (V, 2)))
    gradients = []
    for fused_form in (True, False):
        a, b = down.clone().requires_grad_(), up.clone().requires_grad_()
        head = batch["student_head"] + 0.5 * b @ a
        if fused_form:
            changed = {**batch, "student_head": head}
            loss = fused_dopd_loss(**changed, settings=DopdSettings(top_k=2), chunk_size=4).loss
        else:
            student, privileged = batch["student_hidden"] @ head.T, batch["privileged_student_hidden"] @ head.T.detach()
            teacher = batch["teacher_hidden"] @ batch["teacher_head"].T
            ids, mask = batch["response_ids"], batch["response_mask"]
            loss = dopd_loss(student, teacher, privileged, ids, mask, DopdSettings(top_k=2)).loss
        gradients.append(gradients_of(loss, a, b))
    assert all(torch.allclose(ours, theirs, atol=1e-12) for ours, theirs in zip(*gradients, strict=True))
