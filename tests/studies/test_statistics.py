"""What several seeds say, against values derived by hand."""

import pytest

from dopd_vl.studies.statistics import compare, holm, rank_correlation, summarise


def test_mean_spread_and_interval_of_three_seeds() -> None:
    # 10, 12, 17: mean 13; deviations -3, -1, 4: variance 26 / 2 = 13. t(0.975, 2) = 4.3027.
    summary = summarise([10.0, 12.0, 17.0])
    assert summary.mean == 13.0
    assert summary.spread == pytest.approx(13**0.5)
    assert summary.interval is not None
    half = 4.3027 * (13 / 3) ** 0.5
    assert summary.interval == pytest.approx((13 - half, 13 + half), abs=1e-3)


def test_one_seed_has_no_spread() -> None:
    summary = summarise([0.5])
    assert (summary.mean, summary.spread, summary.interval) == (0.5, None, None)


def test_comparison_is_paired_by_seed_and_takes_the_common_ones() -> None:
    # Differences 1, 2, 3: mean 2, spread 1, t = 2 / (1 / sqrt 3) = 3.4641, two-sided p with 2 degrees: 0.0742.
    comparison = compare({0: 11.0, 1: 22.0, 2: 33.0, 9: 0.0}, {0: 10.0, 1: 20.0, 2: 30.0, 5: 7.0})
    assert comparison is not None
    assert comparison.seeds == 3
    assert comparison.difference == pytest.approx(2.0)
    assert comparison.p == pytest.approx(0.0742, abs=1e-4)
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_do_not_divide_by_zero() -> None:
    same = compare({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    shifted = compare({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert same is not None
    assert same.p == 1.0
    assert shifted is not None
    assert shifted.p == 0.0


def test_holm_never_falls_and_stops_at_one() -> None:
    # Sorted 0.01 x 3, 0.03 x 2, 0.04 x 1, made monotone.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rank_correlation_needs_three_values_that_vary() -> None:
    found = rank_correlation([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0])
    assert found is not None
    assert found[0] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
