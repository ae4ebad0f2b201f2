"""`dopd_loss` by hand and against a naive second definition; its gradients."""

from math import log

import numpy as np
import pytest
import torch
from dopd_cases import DIVERGENCES_BY_HAND, HS, HT, LH, LL, MASKED, TOKENS, all_settings, batches, tokens_by_hand
from hypothesis import given
from hypothesis import strategies as st
from naive_dopd import naive_dopd
from torch import Tensor

from dopd_vl.core.divergences import TAILS
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import dopd_loss

# ---- by hand ---------------------------------------------------------------------------------------------------------


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
