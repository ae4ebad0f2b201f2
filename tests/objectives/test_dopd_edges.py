"""`dopd_loss` at its edges: no token, one token, impossible tokens, narrow types; and mistakes, which are named."""

from typing import Any

import pytest
import torch
from dopd_cases import HS, HT, INF, LH, LL, MASKED, NAN, loss_and_gradient, tokens_by_hand
from torch import Tensor

from dopd_vl.core.divergences import TAILS, TOP_K_SOURCES
from dopd_vl.core.routing import THRESHOLD_SCOPES
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import dopd_loss

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
