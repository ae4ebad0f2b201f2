"""Gap, thresholds and regimes: by hand, at ties, in every scope, trimmed and over ranks."""

from math import log
from pathlib import Path

import pytest
import torch
from gloo_worker import global_and_rank_thresholds, ragged_batch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dopd_vl.core import REGIMES, Thresholds, advantage_gap, compute_thresholds, route
from dopd_vl.core.divergences import LOG_PROB_FLOOR
from dopd_vl.core.routing import THRESHOLD_SCOPES, trimmed_means
from dopd_vl.objectives.dopd import DopdSettings, route_tokens

LH, LL, HT, HS, MASKED = 0, 1, 2, 3, -1
INF, NAN = float("inf"), float("nan")


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def as_list(thresholds: Thresholds) -> list[float]:
    return [thresholds.gap.item(), thresholds.teacher_prob.item(), thresholds.student_prob.item()]


def routed(l_T: Tensor, l_S: Tensor, mask: Tensor, trim_fraction: float = 0.0, scope: str = "global") -> Tensor:
    return route_tokens(l_T, l_S, mask, DopdSettings(trim_fraction=trim_fraction, threshold_scope=scope)).regime


# ---- the four regimes ------------------------------------------------------------------------------------------------


def test_four_tokens_take_the_four_regimes():
    # q_T = (.9, .1, .8, .2)  q_S = (.9, .1, .2, .8)  A = (0, 0, ln 4, ln 4)
    # mean A = ln(4)/2 = 0.693, mean q_T = mean q_S = .5, so the sum is held against 1:
    # 0 < .693, 1.8 >= 1: LH   0 < .693, .2 < 1: LL   1.386 >= .693, .8 >= .2: HT   1.386 >= .693, .2 < .8: HS
    l_T, l_S, mask = logs([0.9, 0.1, 0.8, 0.2]), logs([0.9, 0.1, 0.2, 0.8]), torch.ones(1, 4)
    thresholds = compute_thresholds(l_T, l_S, mask, trim_fraction=0.0)
    assert as_list(thresholds) == pytest.approx([log(4) / 2, 0.5, 0.5])
    assert route(l_T, l_S, mask, thresholds).tolist() == [[LH, LL, HT, HS]]
    assert [int(regime) for regime in REGIMES] == [LH, LL, HT, HS]
    assert advantage_gap(l_T, l_S).tolist() == [pytest.approx([0, 0, log(4), log(4)])]


def test_it_is_the_sum_of_both_probabilities_that_makes_a_token_likely():
    # q_T = (.45, .70, .05)  q_S = (.60, .70, .95), A = (ln 4/3, 0, ln 19), mean A = 1.077, means .4 and .75, sum 1.15.
    # The first token: q_T above its mean, the sum 1.05 below: LL, whatever q_T alone would say.
    l_T, l_S = logs([0.45, 0.70, 0.05]), logs([0.60, 0.70, 0.95])
    assert routed(l_T, l_S, torch.ones(1, 3)).tolist() == [[LL, LH, HS]]


def test_means_are_of_raw_probabilities_not_of_logs():
    # q_T = q_S = (1/2, 1/50, 1/50, 1/50) but for a last token that lifts the mean gap above zero: q_T 1/4, q_S 1/2.
    # mean q_T + mean q_S = (.81 + 1.06) / 5 = .374; the geometric means would sum to .12 and make 1/8 + 1/8 likely.
    l_T, l_S = logs([0.5, 0.02, 0.02, 0.125, 0.25]), logs([0.5, 0.02, 0.02, 0.125, 0.5])
    assert routed(l_T, l_S, torch.ones(1, 5)).tolist() == [[LH, LL, LL, LL, HS]]


# ---- ties ------------------------------------------------------------------------------------------------------------


def test_a_gap_exactly_at_its_mean_is_high():
    # A = (0, 1, 1/2), mean 1/2, all exact in binary. The third token: q_T = e^-1 >= q_S = e^-1.5, so HT.
    l_T, l_S = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -2.0, -1.5]])
    assert routed(l_T, l_S, torch.ones(1, 3)).tolist() == [[LH, HT, HT]]
    assert routed(l_S, l_T, torch.ones(1, 3)).tolist() == [[LH, HS, HS]]


def test_equal_policies_have_no_gap_and_lean_to_the_teacher():
    logp = logs([0.3, 0.6, 0.1])
    # A = mean A = 0 is high, q_T = q_S counts as the teacher's.
    assert routed(logp, logp, torch.ones(1, 3)).tolist() == [[HT, HT, HT]]


def test_a_probability_sum_exactly_at_its_mean_is_likely():
    l_T, l_S = torch.tensor([[-0.5]]), torch.tensor([[-0.75]])
    at = Thresholds(torch.tensor(1.0), l_T.exp().double().sum(), l_S.exp().double().sum())
    above = Thresholds(at.gap, at.teacher_prob + 1e-12, at.student_prob)
    assert route(l_T, l_S, torch.ones(1, 1), at).item() == LH
    assert route(l_T, l_S, torch.ones(1, 1), above).item() == LL


@given(st.floats(-5, 0, width=64), st.floats(-5, 0, width=64), st.integers(1, 40), st.sampled_from([0.0, 0.05, 0.3]))
def test_equal_gaps_are_all_high_however_their_mean_is_rounded(l_T, l_S, tokens, trim_fraction):
    l_T, l_S = (torch.full((1, tokens), x, dtype=torch.float64) for x in (l_T, l_S))
    assert set(routed(l_T, l_S, torch.ones(1, tokens), trim_fraction).unique().tolist()) <= {HT, HS}


# ---- trimming --------------------------------------------------------------------------------------------------------


def test_the_default_drops_one_outlier_of_twenty_one_from_all_three_means():
    # Gaps: 20 tokens of l_T - l_S = ln 2 (q_T = 1/2, q_S = 1/4) and one of ln 60 (q_T = .6, q_S = .01). The 95th
    # percentile of 21 values stands at index .95 * 20 = 19, the 20th value, so that just the last token is left out:
    # means ln 2, 1/2, 1/4. With it they would be (20 ln 2 + ln 60)/21 = 0.855, .5048 and .2386.
    l_T, l_S = logs([0.5] * 20 + [0.6]), logs([0.25] * 20 + [0.01])
    mask = torch.ones(1, 21)
    assert as_list(compute_thresholds(l_T, l_S, mask)) == pytest.approx([log(2), 1 / 2, 1 / 4])
    untrimmed = compute_thresholds(l_T, l_S, mask, trim_fraction=0.0)
    assert as_list(untrimmed) == pytest.approx([(20 * log(2) + log(60)) / 21, 10.6 / 21, 5.01 / 21])
    # Trimmed, the others are at their mean: high. Untrimmed, the outlier lifts the mean above them, and their
    # 1/2 + 1/4 is likely against 15.61/21 = .743: LH. The outlier is routed either way.
    assert routed(l_T, l_S, mask, trim_fraction=0.05).tolist() == [[HT] * 21]
    assert routed(l_T, l_S, mask, trim_fraction=0.0).tolist() == [[LH] * 20 + [HT]]


def test_a_percentile_between_two_values_is_interpolated():
    # Columns A, q_T, q_S. Trim 1/4 of three gaps (0, 1, 2): index .75 * 2 = 1.5, the cut 1.5, and (0, 1) stay.
    rows = torch.tensor([[0.0, 0.2, 0.4], [1.0, 0.4, 0.8], [2.0, 0.9, 0.9]], dtype=torch.float64)
    assert trimmed_means(rows, 0.25).tolist() == pytest.approx([0.5, 0.3, 0.6])
    # Trim 1/2: index 1, the cut is 1 itself, and what stands at the cut stays. Order does not matter.
    assert trimmed_means(rows.flip(0), 0.5).tolist() == pytest.approx([0.5, 0.3, 0.6])
    # Trim .05: index 1.9, the cut 1.9: the largest of few tokens always goes.
    assert trimmed_means(rows, 0.05).tolist() == pytest.approx([0.5, 0.3, 0.6])
    assert trimmed_means(rows, 0.0).tolist() == pytest.approx([1.0, 0.5, 0.7])
    # Of one token nothing can be dropped; of none the means are zero.
    assert trimmed_means(rows[:1], 0.99).tolist() == pytest.approx([0.0, 0.2, 0.4])
    assert trimmed_means(rows[:0], 0.05).tolist() == [0.0, 0.0, 0.0]


def test_trimming_agrees_with_torch_quantile():
    gap = torch.linspace(0, 1, 101, dtype=torch.float64)[torch.randperm(101, generator=torch.manual_seed(0))]
    for trim_fraction in (0.05, 0.1, 0.33, 0.9):
        kept = gap[gap <= torch.quantile(gap, 1 - trim_fraction)]
        assert trimmed_means(gap[:, None], trim_fraction).item() == pytest.approx(kept.mean().item())


# ---- scopes ----------------------------------------------------------------------------------------------------------


def test_sequence_scope_holds_each_sequence_against_its_own_means():
    # Gaps (0, 1) and (2, 4), no trim. Over the batch the mean is 7/4: low low / high high. By sequence the means are
    # 1/2 and 3: low high / low high. Low tokens: the first's q_T + q_S = 2 e^-1 = .736; over the batch the mean sum is
    # (4 e^-1 + e^-1 + e^-2 + e^-3 + e^-5)/4 = .508, so LH, and the second's e^-1 + e^-2 = .503: LL.
    # By sequence: .736 against (.736 + .503)/2: LH; e^-1 + e^-3 = .418 against (.418 + e^-1 + e^-5 = .375)/2: LH.
    l_T = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    l_S = torch.tensor([[-1.0, -2.0], [-3.0, -5.0]])
    mask = torch.ones(2, 2)
    assert routed(l_T, l_S, mask, scope="global").tolist() == [[LH, LL], [HT, HT]]
    assert routed(l_T, l_S, mask, scope="rank").tolist() == [[LH, LL], [HT, HT]]
    assert routed(l_T, l_S, mask, scope="sequence").tolist() == [[LH, HT], [LH, HT]]
    thresholds = compute_thresholds(l_T, l_S, mask, 0.0, "sequence")
    assert thresholds.gap.tolist() == [[0.5], [3.0]]
    assert thresholds.teacher_prob.shape == thresholds.student_prob.shape == (2, 1)


def test_a_sequence_alone_is_routed_as_in_any_company_under_sequence_scope():
    l_T, l_S, mask = ragged_batch(sequences=5, tokens=7)
    together = routed(l_T, l_S, mask, 0.05, "sequence")
    for b in range(5):
        row = slice(b, b + 1)
        assert routed(l_T[row], l_S[row], mask[row], 0.05, "sequence").tolist() == together[row].tolist()


def test_global_scope_gathers_and_rank_scope_does_not():
    l_T, l_S, mask = ragged_batch(sequences=4, tokens=6)
    elsewhere = torch.tensor([[3.0, 0.9, 0.1]], dtype=torch.float64)

    def gather(tokens: Tensor) -> Tensor:
        return torch.cat([tokens, elsewhere])

    tokens = torch.stack([(l_T - l_S).abs(), l_T.exp(), l_S.exp()], dim=-1)[mask.bool()]
    everywhere = compute_thresholds(l_T, l_S, mask, 0.0, "global", gather)
    assert as_list(everywhere) == pytest.approx(torch.cat([tokens, elsewhere]).mean(0).tolist())
    here = compute_thresholds(l_T, l_S, mask, 0.0, "rank", gather)
    assert as_list(here) == pytest.approx(tokens.mean(0).tolist())


def test_two_processes_route_as_one_with_the_joined_batch(tmp_path: Path):
    # Three ways to share five sequences: unevenly, one process without any token, and neither with any.
    torch.multiprocessing.spawn(global_and_rank_thresholds, args=(2, str(tmp_path)), nprocs=2)
    l_T, l_S, mask = ragged_batch(sequences=5, tokens=7)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]

    joined = route_tokens(l_T, l_S, mask, DopdSettings())
    assert torch.equal(torch.cat([rank["uneven"]["regime"] for rank in ranks]), joined.regime)
    for rank in ranks:
        assert rank["uneven"]["thresholds"] == pytest.approx(as_list(joined.thresholds), abs=1e-15)

    # Scope "rank" keeps to itself: the thresholds of its own share, and other than the joined ones.
    for rank, share in zip(ranks, (slice(0, 2), slice(2, 5)), strict=True):
        alone = compute_thresholds(l_T[share], l_S[share], mask[share], scope="rank")
        assert rank["own"] == pytest.approx(as_list(alone), abs=1e-15)
        assert rank["own"] != pytest.approx(as_list(joined.thresholds), abs=1e-3)

    # A process without response tokens takes part all the same, and learns the other's thresholds.
    first = as_list(compute_thresholds(l_T[:2], l_S[:2], mask[:2]))
    assert [rank["one empty"] for rank in ranks] == [pytest.approx(first, abs=1e-15)] * 2
    assert [rank["both empty"] for rank in ranks] == [[0.0, 0.0, 0.0]] * 2

    # The whole loss, too: every token's loss is that of the joined batch.
    for scope in ("global", "sequence"):
        assert torch.allclose(torch.cat([rank["token_loss"][scope] for rank in ranks]), ranks[0]["joined"][scope])


# ---- properties ------------------------------------------------------------------------------------------------------


@st.composite
def scored_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled log-probabilities of both policies with ties, zeros and impossibles, and any mask."""
    B, N = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    logp = st.sampled_from([0.0, -0.5, -1.0, -2.0, -8.0, -200.0, -INF]) | st.floats(-20, 0, width=32)
    l_T, l_S = (
        torch.tensor(draw(st.lists(logp, min_size=B * N, max_size=B * N)), dtype=torch.float32).reshape(B, N)
        for _ in range(2)
    )
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=B * N, max_size=B * N)), dtype=torch.bool).reshape(B, N)
    return l_T, l_S, mask


@given(scored_batches(), st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from(THRESHOLD_SCOPES))
def test_regimes_partition_the_unmasked_tokens(batch, trim_fraction, scope):
    l_T, l_S, mask = batch
    regime, gap, thresholds = route_tokens(
        l_T, l_S, mask, DopdSettings(trim_fraction=trim_fraction, threshold_scope=scope)
    )
    assert regime.dtype == torch.int64
    assert torch.equal(sum((regime == r).int() for r in REGIMES), mask.int())
    assert torch.equal(regime == MASKED, ~mask)
    # And each is where its definition puts it.
    high = (gap >= thresholds.gap) & mask
    assert torch.equal(((regime == HT) | (regime == HS)), high)
    assert torch.equal(regime == HT, high & (l_T.exp() >= l_S.exp()))
    likely = l_T.exp().double() + l_S.exp().double() >= thresholds.teacher_prob + thresholds.student_prob
    assert torch.equal(regime == LH, ~high & mask & likely)
    assert gap.isfinite().all()
    assert (gap >= 0).all()
    for mean in (thresholds.gap, thresholds.teacher_prob, thresholds.student_prob):
        assert mean.isfinite().all()


@given(scored_batches(), st.sampled_from([NAN, INF, -INF, 3.0]), st.sampled_from(THRESHOLD_SCOPES))
def test_masked_positions_change_nothing(batch, junk, scope):
    l_T, l_S, mask = batch
    settings = DopdSettings(threshold_scope=scope)
    clean = route_tokens(l_T, l_S, mask, settings)
    dirty = route_tokens(l_T.masked_fill(~mask, junk), l_S.masked_fill(~mask, -junk), mask, settings)
    assert torch.equal(clean.regime, dirty.regime)
    assert torch.equal(clean.gap, dirty.gap)
    assert torch.equal(clean.thresholds.gap, dirty.thresholds.gap)
    assert torch.equal(clean.thresholds.teacher_prob, dirty.thresholds.teacher_prob)


def test_routing_carries_no_gradient():
    l_T, l_S, mask = ragged_batch(sequences=3, tokens=4)
    routing = route_tokens(l_T.requires_grad_(), l_S.requires_grad_(), mask, DopdSettings())
    thresholds = routing.thresholds
    tensors = [routing.regime, routing.gap, thresholds.gap, thresholds.teacher_prob, thresholds.student_prob]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_two_impossible_tokens_have_no_gap_and_one_has_the_floors():
    gap = advantage_gap(torch.tensor([-INF, -INF, -200.0, -1.0]), torch.tensor([-INF, -1.0, -INF, -INF]))
    assert gap.tolist() == [0.0, -LOG_PROB_FLOOR - 1, 0.0, -LOG_PROB_FLOOR - 1]


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_wrong_scope_or_fraction_is_named():
    logp, mask = torch.zeros(1, 1), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"unknown threshold_scope 'batch', expected one of global, rank, sequence"):
        compute_thresholds(logp, logp, mask, scope="batch")
    for fraction in (-0.1, 1.0, NAN):
        with pytest.raises(ValueError, match=rf"trim_fraction={fraction} must be at least 0 and below 1"):
            compute_thresholds(logp, logp, mask, trim_fraction=fraction)
