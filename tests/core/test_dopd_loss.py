"""`dopd_loss`: by hand, against a naive second definition, its invariances, gradients and edges."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_dopd import naive_dopd
from torch import Tensor

from dopd_vl.core import DopdOutput, DopdSettings, dopd_loss
from dopd_vl.core.divergences import TAILS, TOP_K_SOURCES
from dopd_vl.core.routing import THRESHOLD_SCOPES

LH, LL, HT, HS, MASKED = 0, 1, 2, 3, -1
INF, NAN = float("inf"), float("nan")

# ---- by hand ---------------------------------------------------------------------------------------------------------

# Four tokens on three entries, one for each regime; the sampled token is always entry 0, K is 1.
#        S (learns)         T privileged       P privileged student
TOKENS = {
    LH: ((1 / 2, 1 / 4, 1 / 4), (4 / 5, 1 / 10, 1 / 10), (2 / 3, 1 / 6, 1 / 6)),
    LL: ((1 / 4, 1 / 4, 1 / 2), (1 / 5, 3 / 5, 1 / 5), (1 / 4, 1 / 2, 1 / 4)),
    HT: ((1 / 4, 5 / 8, 1 / 8), (3 / 4, 1 / 8, 1 / 8), (1 / 8, 3 / 4, 1 / 8)),
    HS: ((1 / 3, 1 / 3, 1 / 3), (1 / 6, 2 / 3, 1 / 6), (2 / 3, 1 / 6, 1 / 6)),
}
# A = ln 6/5, ln 5/4, ln 6, ln 4.  q_T = 4/5, 1/5, 3/4, 1/6.  q_S = 2/3, 1/4, 1/8, 2/3.
# No trim:  mean A = ln(36)/4 = .896; mean q_T + mean q_S = 23/48 + 41/96 = 29/32 = .906
# Trim .05: the cut stands at index .95 * 3 = 2.85, above ln 4 and below ln 6, so the HT token leaves the means:
#           mean A = ln(6)/3 = .597; means 7/18 + 19/36 = 11/12 = .917. The regimes are the same.
#   LH: ln 6/5 = .182 below, 4/5 + 2/3 = 1.467 above;  LL: ln 5/4 = .223 below, 9/20 below;
#   HT: ln 6 above, 3/4 >= 1/8;                        HS: ln 4 above, 1/6 < 2/3.
# Losses, with K = 1 and the rest in a bucket:
#   LH: KL(S||T) over entry 0 | rest: S 1/2 | 1/2, T 4/5 | 1/5:  1/2 ln 5/8 + 1/2 ln 5/2 = ln 5/4
#   LL: KL(S||P) over entry 1 | rest: S 1/4 | 3/4, P 1/2 | 1/2:  1/4 ln 1/2 + 3/4 ln 3/2
#   HT: JS over all three, M = (1/2, 3/8, 1/8):  1/2 (3/4 ln 3/2 + 1/8 ln 1/3) + 1/2 (1/4 ln 1/2 + 5/8 ln 5/3)
#   HS: KL(S||P) over entry 0 | rest: S 1/3 | 2/3, P 2/3 | 1/3:  1/3 ln 1/2 + 2/3 ln 2 = 1/3 ln 2
DIVERGENCES_BY_HAND = {
    LH: log(5 / 4),
    LL: log(1 / 2) / 4 + 3 * log(3 / 2) / 4,
    HT: (3 / 4 * log(3 / 2) + 1 / 8 * log(1 / 3)) / 2 + (1 / 4 * log(1 / 2) + 5 / 8 * log(5 / 3)) / 2,
    HS: log(2) / 3,
}


def tokens_by_hand(layout: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits `[B, N, 3]` of the tokens of `TOKENS` in this layout; MASKED positions hold zeros."""
    policies = [
        torch.tensor(
            [[TOKENS[r][p] if r >= 0 else (1, 1, 1) for r in row] for row in layout], dtype=torch.float64
        ).log()
        for p in range(3)
    ]
    regimes = torch.tensor(layout)
    return *policies, torch.zeros_like(regimes), regimes != MASKED


@pytest.mark.parametrize(
    ("trim_fraction", "thresholds"),
    [(0.0, (log(36) / 4, 23 / 48, 41 / 96)), (0.05, (log(6) / 3, 7 / 18, 19 / 36))],
)
def test_one_token_of_each_regime_by_hand(trim_fraction: float, thresholds: tuple[float, float, float]):
    layout = [[LH, LL, HT], [HS, MASKED, MASKED], [MASKED, MASKED, MASKED]]
    out = dopd_loss(*tokens_by_hand(layout), DopdSettings(top_k=1, trim_fraction=trim_fraction))
    weighted = {
        regime: weight * DIVERGENCES_BY_HAND[regime] for regime, weight in zip(TOKENS, (0.6, 0.3, 1, 0.6), strict=True)
    }
    assert out.regime.tolist() == layout
    assert out.token_loss.flatten().tolist() == pytest.approx(
        [weighted[LH], weighted[LL], weighted[HT], weighted[HS], 0, 0, 0, 0, 0], abs=1e-12
    )
    # .133886, .039244, .156376 and .138629. The two sequences count the same, their tokens do not; the third has none:
    # ((.133886 + .039244 + .156376) / 3 + .138629) / 2
    assert out.loss.item() == pytest.approx(0.124232, abs=1e-6)
    assert out.loss.item() == pytest.approx(
        ((weighted[LH] + weighted[LL] + weighted[HT]) / 3 + weighted[HS]) / 2, abs=1e-12
    )
    means = (out.thresholds.gap, out.thresholds.teacher_prob, out.thresholds.student_prob)
    assert [mean.item() for mean in means] == pytest.approx(thresholds)
    assert out.gap.flatten().tolist() == pytest.approx([log(6 / 5), log(5 / 4), log(6), log(4), 0, 0, 0, 0, 0])
    assert out.teacher_logp[0].exp().tolist() == pytest.approx([4 / 5, 1 / 5, 3 / 4])
    assert out.teacher_logp[1:].exp().flatten().tolist() == pytest.approx([1 / 6, 1, 1, 1, 1, 1])
    assert out.privileged_student_logp[0].exp().tolist() == pytest.approx([2 / 3, 1 / 4, 1 / 8])


def test_betas_weigh_their_own_regimes():
    layout = [[LH, LL, HT, HS]]
    losses = {
        betas: dopd_loss(*tokens_by_hand(layout), DopdSettings(*betas, top_k=1)).token_loss[0]
        for betas in ((1.0, 1.0), (5.0, 1.0), (1.0, 7.0), (0.0, 0.0))
    }
    assert losses[1.0, 1.0].tolist() == pytest.approx(list(DIVERGENCES_BY_HAND.values()))
    assert (losses[5.0, 1.0] / losses[1.0, 1.0]).tolist() == pytest.approx([5, 1, 1, 5])
    assert (losses[1.0, 7.0] / losses[1.0, 1.0]).tolist() == pytest.approx([1, 7, 1, 1])
    assert losses[0.0, 0.0].tolist() == pytest.approx([0, 0, DIVERGENCES_BY_HAND[HT], 0])


def test_tails_by_hand():
    # The LH token above: K = 1 keeps S 1/2 and T 4/5. Dropped: 1/2 ln 5/8. Renormalised: 1 against 1, no loss. With the
    # union of both policies' single tokens (the same, entry 0), no change. The student's own: entry 0, too.
    batch = tokens_by_hand([[LH, LL, HT, HS]])
    by_tail = {tail: dopd_loss(*batch, DopdSettings(top_k=1, tail=tail)).token_loss[0] for tail in TAILS}
    assert by_tail["drop"][LH].item() == pytest.approx(0.6 * log(5 / 8) / 2)
    assert by_tail["renormalize"].tolist() == pytest.approx([0, 0, DIVERGENCES_BY_HAND[HT], 0], abs=1e-12)
    # The LL token with the student's single token, entry 2: S 1/2 | 1/2, P 1/4 | 3/4: 1/2 ln 2 + 1/2 ln 2/3.
    # With both policies' tokens, 1 and 2: the whole of S = (1/4, 1/4, 1/2) against P = (1/4, 1/2, 1/4): 1/4 ln 2.
    student = dopd_loss(*batch, DopdSettings(top_k=1, top_k_source="student")).token_loss[0, LL]
    union = dopd_loss(*batch, DopdSettings(top_k=1, top_k_source="union")).token_loss[0, LL]
    assert student.item() == pytest.approx(0.3 * (log(2) / 2 + log(2 / 3) / 2))
    assert union.item() == pytest.approx(0.3 * log(2) / 4)


# ---- against the naive definition ------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn, dtype: torch.dtype = torch.float64, least: int = 0) -> list[Tensor]:
    """Logits of the three policies, ids and mask: random shapes, sharpness and lengths, holes in the mask included."""
    B, N, V = draw(st.integers(least, 3)), draw(st.integers(least, 6)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([0.3, 2.0, 6.0]))
    shared = torch.randn(B, N, V, generator=generator, dtype=torch.float64) * scale
    policies = [shared + torch.randn(B, N, V, generator=generator, dtype=torch.float64) * scale for _ in range(3)]
    ids = torch.randint(V, (B, N), generator=generator)
    mask = torch.rand(B, N, generator=generator) < draw(st.sampled_from([0.0, 0.4, 0.8, 1.0]))
    return [*(logits.to(dtype) for logits in policies), ids, mask]


@st.composite
def all_settings(draw: st.DrawFn, vocabulary: int) -> dict[str, Any]:
    return {
        "beta_light": draw(st.sampled_from([0.0, 0.6, 1.7])),
        "beta_weak": draw(st.sampled_from([0.0, 0.3, 2.0])),
        "top_k": draw(st.integers(1, vocabulary)),
        "trim_fraction": draw(st.sampled_from([0.0, 0.05, 0.25, 0.5])),
        "threshold_scope": draw(st.sampled_from(THRESHOLD_SCOPES)),
        "top_k_source": draw(st.sampled_from(TOP_K_SOURCES)),
        "tail": draw(st.sampled_from(TAILS)),
    }


@given(st.data())
def test_dopd_loss_equals_the_naive_definition(data: st.DataObject):
    batch = data.draw(batches())
    settings = data.draw(all_settings(batch[0].shape[-1]))
    out = dopd_loss(*batch, DopdSettings(**settings))
    naive = naive_dopd(*(tensor.numpy() for tensor in batch), **settings)
    np.testing.assert_array_equal(out.regime.numpy(), naive.regime)
    np.testing.assert_allclose(out.gap.numpy(), naive.gap, atol=1e-10)
    np.testing.assert_allclose(out.token_loss.numpy(), naive.token_loss, atol=1e-10)
    assert out.loss.item() == pytest.approx(naive.loss, abs=1e-10)
    means = torch.stack([out.thresholds.gap, out.thresholds.teacher_prob, out.thresholds.student_prob], dim=-1)
    np.testing.assert_allclose(
        means.reshape(-1, 3).expand(naive.thresholds.shape).numpy(), naive.thresholds, atol=1e-10
    )


def test_the_naive_definition_meets_every_regime():
    # Else the pin above would hold less than it says.
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(4, 10, 6)) * 2 for _ in range(3)]
    naive = naive_dopd(*logits, rng.integers(6, size=(4, 10)), np.ones((4, 10)), top_k=3)
    assert set(naive.regime.ravel()) == {LH, LL, HT, HS}


# ---- invariances -----------------------------------------------------------------------------------------------------


def loss_and_gradient(batch: list[Tensor], settings: DopdSettings) -> tuple[DopdOutput, Tensor]:
    student = batch[0].clone().requires_grad_()
    out = dopd_loss(student, *batch[1:], settings)
    out.loss.backward()
    return out, student.grad


@given(st.data(), st.sampled_from([NAN, INF, -INF, 1e30]))
def test_what_stands_at_masked_positions_changes_nothing(data: st.DataObject, junk: float):
    batch = data.draw(batches(torch.float32))
    mask = batch[4]
    settings = DopdSettings(top_k=2, threshold_scope=data.draw(st.sampled_from(THRESHOLD_SCOPES)))
    dirty = [logits.masked_fill(~mask[..., None], junk) for logits in batch[:3]]
    ids = batch[3].masked_fill(~mask, data.draw(st.sampled_from([-100, 10**6, 0])))
    clean_out, clean_gradient = loss_and_gradient(batch, settings)
    dirty_out, dirty_gradient = loss_and_gradient([*dirty, ids, mask], settings)
    for name in ("loss", "token_loss", "regime", "gap", "teacher_logp", "privileged_student_logp"):
        assert torch.equal(getattr(clean_out, name), getattr(dirty_out, name)), name
    assert torch.equal(clean_gradient, dirty_gradient)
    assert (dirty_gradient[~mask] == 0).all()


@given(st.data())
def test_padding_changes_nothing(data: st.DataObject):
    batch = data.draw(batches(torch.float32))
    settings = DopdSettings(top_k=2, threshold_scope=data.draw(st.sampled_from(THRESHOLD_SCOPES)))
    rows, left, right = (data.draw(st.integers(0, 2)) for _ in range(3))
    B, N = batch[4].shape
    padded = [
        torch.nn.functional.pad(tensor, [0, 0] * (tensor.ndim - 2) + [left, right, 0, rows], value=0)
        for tensor in batch
    ]
    out, gradient = loss_and_gradient(batch, settings)
    padded_out, padded_gradient = loss_and_gradient(padded, settings)
    inside = (slice(0, B), slice(left, left + N))
    assert padded_out.loss.item() == pytest.approx(out.loss.item(), abs=1e-6)
    assert torch.equal(padded_out.regime[inside], out.regime)
    assert torch.allclose(padded_out.token_loss[inside], out.token_loss, atol=1e-6)
    assert torch.allclose(padded_gradient[inside], gradient, atol=1e-6)


@given(st.data())
def test_batch_order_changes_nothing(data: st.DataObject):
    batch = data.draw(batches(torch.float32))
    settings = DopdSettings(top_k=2, threshold_scope=data.draw(st.sampled_from(THRESHOLD_SCOPES)))
    order = data.draw(st.permutations(range(batch[0].shape[0])))
    out, gradient = loss_and_gradient(batch, settings)
    shuffled_out, shuffled_gradient = loss_and_gradient([tensor[order] for tensor in batch], settings)
    assert shuffled_out.loss.item() == pytest.approx(out.loss.item(), abs=1e-6)
    assert torch.equal(shuffled_out.regime, out.regime[order])
    assert torch.allclose(shuffled_out.token_loss, out.token_loss[order], atol=1e-6)
    assert torch.allclose(shuffled_gradient, gradient[order], atol=1e-6)


@given(st.data(), st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(data: st.DataObject, constant: float):
    batch = data.draw(batches(least=1))
    settings = DopdSettings(top_k=2)
    shifted = [logits + constant for logits in batch[:3]]
    assert dopd_loss(*shifted, *batch[3:], settings).loss.item() == pytest.approx(
        dopd_loss(*batch, settings).loss.item(), abs=1e-9
    )


@given(st.data())
def test_loss_is_never_negative_unless_the_tail_is_dropped(data: st.DataObject):
    batch = data.draw(batches(torch.float32))
    settings = data.draw(all_settings(batch[0].shape[-1]))
    if settings["tail"] == "drop":
        settings["tail"] = "bucket"
    assert (dopd_loss(*batch, DopdSettings(**settings)).token_loss >= -1e-6).all()


@given(st.data())
def test_equal_policies_give_zero_loss_and_zero_gradient(data: st.DataObject):
    logits, _, _, ids, mask = data.draw(batches())
    settings = data.draw(all_settings(logits.shape[-1]))
    out, gradient = loss_and_gradient([logits, logits, logits, ids, mask], DopdSettings(**settings))
    assert torch.allclose(out.token_loss, torch.zeros_like(out.token_loss), atol=1e-12)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-12)
    assert (out.regime[mask] == HT).all()


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "top_k_source"),
    [("bucket", "target"), ("renormalize", "target"), ("drop", "target"), ("bucket", "student"), ("bucket", "union")],
)
def test_gradients_match_finite_differences(tail: str, top_k_source: str):
    generator = torch.Generator().manual_seed(3)
    student, teacher, privileged_student = (
        torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) * 2 for _ in range(3)
    )
    ids = torch.randint(3, (2, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    settings = DopdSettings(top_k=1, tail=tail, top_k_source=top_k_source)

    def losses(student_logits: Tensor) -> tuple[Tensor, Tensor]:
        out = dopd_loss(student_logits, teacher, privileged_student, ids, mask, settings)
        return out.loss, out.token_loss

    regimes = dopd_loss(student, teacher, privileged_student, ids, mask, settings).regime.unique().tolist()
    assert regimes == [MASKED, LH, LL, HT, HS], "the finite differences should see every regime"
    assert torch.autograd.gradcheck(losses, student.requires_grad_())


def test_no_gradient_reaches_the_privileged_policies():
    student, teacher, privileged_student, ids, mask = tokens_by_hand([[LH, LL, HT, HS]])
    logits = [tensor.requires_grad_() for tensor in (student, teacher, privileged_student)]
    out = dopd_loss(*logits, ids, mask, DopdSettings(top_k=1))
    out.loss.backward()
    assert student.grad.abs().sum(-1).min() > 0
    assert teacher.grad is None
    assert privileged_student.grad is None
    means = (out.thresholds.gap, out.thresholds.teacher_prob, out.thresholds.student_prob)
    for tensor in (out.gap, out.teacher_logp, out.privileged_student_logp, *means):
        assert not tensor.requires_grad


def test_a_policy_of_the_same_weights_supervises_as_a_constant():
    # S(.|x,p) and S(.|x) come from the same weights: what supervises must still be a constant of the graph.
    logits = torch.randn(1, 4, 5, generator=torch.manual_seed(0), dtype=torch.float64).requires_grad_()
    ids, mask = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4)
    dopd_loss(logits, logits * 2, logits * 3, ids, mask, DopdSettings(top_k=2)).loss.backward()
    shared = logits.grad.clone()
    logits.grad = None
    dopd_loss(logits, logits.detach() * 2, logits.detach() * 3, ids, mask, DopdSettings(top_k=2)).loss.backward()
    assert torch.equal(shared, logits.grad)


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", THRESHOLD_SCOPES)
@pytest.mark.parametrize(("B", "N", "masked"), [(0, 3, False), (2, 0, False), (0, 0, False), (2, 3, True)])
def test_without_a_token_the_loss_is_zero_and_so_is_its_gradient(B: int, N: int, masked: bool, scope: str):
    logits = torch.randn(B, N, 4)
    mask = torch.full((B, N), not masked)
    out, gradient = loss_and_gradient(
        [logits, logits + 1, -logits, torch.zeros(B, N, dtype=torch.long), mask],
        DopdSettings(top_k=2, threshold_scope=scope),
    )
    assert out.loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros(B, N, 4))
    assert (out.regime == MASKED).all()
    assert out.token_loss.shape == out.regime.shape == out.gap.shape == (B, N)
    for mean in (out.thresholds.gap, out.thresholds.teacher_prob, out.thresholds.student_prob):
        assert (mean == 0).all()


def test_one_token_is_at_its_own_mean_and_so_high():
    for regime, source in ((LH, HT), (LL, HS), (HT, HT), (HS, HS)):
        out = dopd_loss(*tokens_by_hand([[regime]]), DopdSettings(top_k=1))
        assert out.regime.item() == source
        assert out.loss.item() == pytest.approx(out.token_loss.item())


def test_a_sequence_without_a_token_is_left_out_of_the_mean():
    alone = dopd_loss(*tokens_by_hand([[LH, LL, HT, HS]]), DopdSettings(top_k=1))
    beside_none = dopd_loss(*tokens_by_hand([[LH, LL, HT, HS], [MASKED] * 4]), DopdSettings(top_k=1))
    assert beside_none.loss.item() == pytest.approx(alone.loss.item(), abs=1e-15)


IMPOSSIBLE = [[0.0, -INF, 1.0, 0.3], [-INF, 0.5, 0.2, 0.1], [-INF, -INF, -INF, 0.0], [0.0, 1.0, 2.0, -INF]]
POSSIBLE = [[0.5, 0.2, 0.1, 0.9], [1.0, -0.5, 0.2, 0.1], [0.3, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("who", ["student", "teacher", "privileged student", "student and teacher", "all"])
def test_impossible_tokens_give_finite_losses_and_gradients(who: str, dtype: torch.dtype):
    rows = {name: IMPOSSIBLE if name in who or who == "all" else POSSIBLE for name in ("teacher", "privileged student")}
    student = IMPOSSIBLE[::-1] if who.startswith("student") or who == "all" else POSSIBLE
    # One sequence for each token that could have been sampled.
    logits = [torch.tensor([x] * 4, dtype=dtype) for x in (student, rows["teacher"], rows["privileged student"])]
    batch = [*logits, torch.arange(4)[:, None].expand(4, 4), torch.ones(4, 4)]
    for tail in TAILS:
        for source in TOP_K_SOURCES:
            out, gradient = loss_and_gradient(batch, DopdSettings(top_k=2, tail=tail, top_k_source=source))
            assert out.loss.isfinite()
            assert out.gap.isfinite().all()
            assert gradient.isfinite().all()
            assert gradient.dtype == dtype
            assert (out.regime >= 0).all()
            assert not out.teacher_logp.isnan().any()


def test_two_policies_that_both_exclude_the_sampled_token_agree():
    teacher = torch.tensor([[[-INF, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    out = dopd_loss(
        teacher, teacher, teacher, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2), DopdSettings(top_k=1)
    )
    assert out.gap.tolist() == [[0.0, 0.0]]
    assert out.teacher_logp[0, 0].item() == -INF


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_are_computed_in_single_precision(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    logits = [(torch.randn(3, 8, 300, generator=generator) * 4).to(dtype) for _ in range(3)]
    ids, mask = torch.randint(300, (3, 8), generator=generator), torch.ones(3, 8)
    out, gradient = loss_and_gradient([*logits, ids, mask], DopdSettings())
    wide, wide_gradient = loss_and_gradient([*(x.float() for x in logits), ids, mask], DopdSettings())
    assert out.loss.dtype == out.token_loss.dtype == torch.float32
    assert torch.equal(out.token_loss, wide.token_loss)
    assert torch.equal(gradient, wide_gradient.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_any_type_of_mask_will_do(dtype: torch.dtype):
    student, teacher, privileged_student, ids, mask = tokens_by_hand([[LH, LL, HT], [HS, MASKED, MASKED]])
    settings = DopdSettings(top_k=1)
    expected = dopd_loss(student, teacher, privileged_student, ids, mask, settings)
    out = dopd_loss(student, teacher, privileged_student, ids, mask.to(dtype), settings)
    assert torch.equal(out.token_loss, expected.token_loss)
    assert out.loss == expected.loss
    assert out.loss.dtype == torch.float64


def test_inputs_are_left_as_they_were():
    batch = tokens_by_hand([[LH, LL, HT], [HS, MASKED, MASKED]])
    before = [tensor.clone() for tensor in batch]
    dopd_loss(*batch, DopdSettings(top_k=1))
    assert all(torch.equal(x, y) for x, y in zip(batch, before, strict=True))


# ---- mistakes --------------------------------------------------------------------------------------------------------

B, N, V = 2, 3, 4


def arguments(**changed: Tensor) -> dict[str, Tensor]:
    plain = {
        "student_logits": torch.zeros(B, N, V),
        "teacher_logits": torch.zeros(B, N, V),
        "privileged_student_logits": torch.zeros(B, N, V),
        "response_ids": torch.zeros(B, N, dtype=torch.long),
        "response_mask": torch.ones(B, N),
    }
    return {**plain, **changed}


def filled(value: float) -> Tensor:
    """Zeros but for one logit."""
    logits = torch.zeros(B, N, V)
    logits[1, 2, 3] = value
    return logits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"response_ids": torch.zeros(N, dtype=torch.long)}, r"response_ids must be \[B, N\], got shape \(3,\)"),
        ({"response_mask": torch.ones(B, 1)}, r"response_mask has shape \(2, 1\), response_ids has \(2, 3\)"),
        ({"response_ids": torch.zeros(B, N)}, r"response_ids must be integers, got torch.float32"),
        ({"response_ids": torch.full((B, N), V)}, r"response_ids must be in \[0, 4\), got 4 to 4"),
        ({"response_ids": torch.full((B, N), -100)}, r"response_ids must be in \[0, 4\), got -100 to -100"),
        (
            {"student_logits": torch.zeros(B, N + 1, V)},
            r"student_logits must be \[B, N, .\].*\(2, 3\), got \(2, 4, 4\)",
        ),
        ({"teacher_logits": torch.zeros(B, 1, V)}, r"teacher_logits must be \[B, N, .\].*\(2, 3\), got \(2, 1, 4\)"),
        ({"teacher_logits": torch.zeros(B, N, V + 1)}, r"teacher_logits has a vocabulary of 5, student_logits of 4"),
        ({"privileged_student_logits": torch.zeros(B, N, 3)}, r"privileged_student_logits has a vocabulary of 3, .* 4"),
        ({"privileged_student_logits": torch.zeros(B, V)}, r"privileged_student_logits must be \[B, N, .\]"),
        ({"student_logits": filled(NAN)}, r"student_logits holds NaN or \+inf at a response token"),
        ({"teacher_logits": filled(INF)}, r"teacher_logits holds NaN or \+inf at a response token"),
        ({"privileged_student_logits": torch.full((B, N, V), -INF)}, r"privileged_student_logits is -inf everywhere"),
    ],
)
def test_unusable_tensors_are_named(changed: dict[str, Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        dopd_loss(**arguments(**changed), settings=DopdSettings(top_k=2))


def test_a_top_k_beyond_the_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"top_k=128 is larger than the vocabulary of 4 entries"):
        dopd_loss(**arguments())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta_light": -0.1}, r"beta_light=-0.1 must be a finite number, not negative"),
        ({"beta_weak": NAN}, r"beta_weak=nan must be"),
        ({"beta_weak": INF}, r"beta_weak=inf must be"),
        ({"top_k": 0}, r"top_k=0 must be at least 1"),
        ({"trim_fraction": 1.0}, r"trim_fraction=1.0 must be at least 0 and below 1"),
        ({"threshold_scope": "batch"}, r"unknown threshold_scope 'batch', expected one of global, rank, sequence"),
        ({"top_k_source": "teacher"}, r"unknown top_k_source 'teacher', expected one of target, student, union"),
        ({"tail": "keep"}, r"unknown tail 'keep', expected one of bucket, renormalize, drop"),
    ],
)
def test_settings_that_cannot_be_are_named(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DopdSettings(**changed)


def test_default_settings_are_the_papers():
    assert DopdSettings() == DopdSettings(0.6, 0.3, 128, 0.05, "global", "target", "bucket")
