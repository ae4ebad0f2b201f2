"""What changes nothing in `dopd_loss`: masked positions, padding, order, a constant. And what is always so."""

import pytest
import torch
from dopd_cases import HT, INF, NAN, all_settings, batches, loss_and_gradient
from hypothesis import given
from hypothesis import strategies as st

from dopd_vl.core.routing import THRESHOLD_SCOPES
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import dopd_loss


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
