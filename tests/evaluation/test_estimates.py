"""Scores and their intervals: known values, and the properties that make them what they are called."""

from itertools import combinations, pairwise
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd_vl.evaluation.estimates import average, ks_up_to, pass_at

VERDICTS = st.integers(1, 5).flatmap(
    lambda samples: st.lists(st.lists(st.booleans(), min_size=samples, max_size=samples), min_size=1, max_size=6)
)


def test_one_response_a_question_has_wilsons_interval() -> None:
    # Wilson (1927) by hand, z = 1.959964, 8 of 10: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.71672,
    # half width z/(1 + z^2/10) * sqrt(0.8*0.2/10 + z^2/400) = 0.22662.
    z = 1.959964
    scale = 1 + z * z / 10
    centre, half = (0.8 + z * z / 20) / scale, z / scale * sqrt(0.016 + z * z / 400)
    got = average([[True]] * 8 + [[False]] * 2)
    assert (got.value, got.method) == (0.8, "wilson")
    assert (got.low, got.high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_all_right_is_not_certain() -> None:
    assert average([[True]] * 20).low == pytest.approx(0.8389, abs=1e-3)


@given(VERDICTS)
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_right_response(verdicts: list[list[bool]]) -> None:
    samples = len(verdicts[0])
    for k in range(1, samples + 1):
        shares = [sum(any(chosen) for chosen in combinations(row, k)) / comb(samples, k) for row in verdicts]
        assert pass_at(verdicts, k).value == pytest.approx(sum(shares) / len(shares))


@given(VERDICTS)
def test_pass_at_1_is_the_average_and_pass_at_k_grows(verdicts: list[list[bool]]) -> None:
    values = [pass_at(verdicts, k).value for k in range(1, len(verdicts[0]) + 1)]
    assert values[0] == pytest.approx(average(verdicts).value)
    assert all(b >= a - 1e-12 for a, b in pairwise(values))


def test_the_bootstrap_agrees_with_the_normal_approximation_where_that_holds() -> None:
    random = np.random.default_rng(3)
    verdicts = [[bool(x) for x in random.random(4) < p] for p in random.beta(2, 2, size=400)]
    shares = [sum(row) / 4 for row in verdicts]
    half = 1.96 * np.std(shares) / sqrt(400)
    got = average(verdicts)
    assert got.method == "bootstrap"
    assert (got.low, got.high) == pytest.approx((got.value - half, got.value + half), abs=0.003)


def test_responses_to_one_question_are_not_taken_for_independent() -> None:
    # 20 questions of 8 equal responses hold no more than 20 questions of one.
    alike = average([[True] * 8] * 10 + [[False] * 8] * 10)
    assert alike.high - alike.low > 0.3  # 160 independent responses would have 0.15


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="there must be one question"):
        average([])
    with pytest.raises(ValueError, match="the fewest are 2"):
        pass_at([[True, False], [True, False, True]], 3)


@pytest.mark.parametrize(("samples", "ks"), [(1, [1]), (2, [1, 2]), (32, [1, 2, 4, 8, 16, 32]), (6, [1, 2, 4, 6])])
def test_ks_are_powers_of_two_and_all(samples: int, ks: list[int]) -> None:
    assert ks_up_to(samples) == ks
