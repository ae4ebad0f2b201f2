"""What several seeds say: mean, spread, and whether two cells differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Of one quantity over seeds."""

    mean: float
    spread: float | None
    """sample standard deviation; None with one seed"""
    interval: tuple[float, float] | None
    """95 % confidence interval of the mean, by Student's t; None with one seed"""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """A cell against the baseline, seed by seed."""

    difference: float
    """mean over the seeds that both have"""
    interval: tuple[float, float] | None
    """95 % confidence interval, by Student's t"""
    p: float | None
    """two-sided paired t-test; None with fewer than two seeds in common"""
    seeds: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and confidence interval.

    >>> summarise([0.2, 0.4]).mean
    0.30000000000000004
    """
    if not values:
        raise ValueError("nothing to summarise")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Summary(mean, None, None, tuple(values))
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return Summary(mean, spread, (mean - half, mean + half), tuple(values))


def compare(ours: dict[int, float], baseline: dict[int, float]) -> Comparison | None:
    """Paired by seed; None where no seed is common to both."""
    seeds = sorted(ours.keys() & baseline.keys())
    if not seeds:
        return None
    differences = summarise([ours[seed] - baseline[seed] for seed in seeds])
    p = None
    if differences.spread == 0:  # the same difference for every seed: the t statistic has no value
        p = 1.0 if differences.mean == 0 else 0.0
    elif differences.spread is not None:
        p = float(stats.ttest_rel([ours[s] for s in seeds], [baseline[s] for s in seeds]).pvalue)
    return Comparison(differences.mean, differences.interval, p, len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several comparisons with one baseline, in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | None:
    """Spearman's rho and its p-value; None with fewer than three pairs, or where one side does not vary."""
    if len(ours) < 3 or len(set(ours)) == 1 or len(set(theirs)) == 1:
        return None
    result = stats.spearmanr(ours, theirs)
    return float(result.statistic), float(result.pvalue)
