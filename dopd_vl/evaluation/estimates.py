"""What a score is worth: avg@k, the unbiased pass@k, 95 % confidence intervals, and the gap that was recovered.

The questions are the sample: an interval says how far the score would move with other questions of the same kind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # drawn questions in memory


@dataclass(frozen=True)
class Estimate:
    """A share, 0 to 1, with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    method: str
    """of the interval: wilson or bootstrap"""


def average(verdicts: Sequence[Sequence[bool]]) -> Estimate:
    """avg@k: the mean over questions of the share of right responses.

    With one response a question the interval is Wilson's (1927) score interval, which holds near 0 and 1 too; with
    more it is the percentile bootstrap over questions, as responses to one question are not independent.

    Args:
        verdicts: for each question, whether each of its responses is right.
    """
    _check(verdicts)
    if all(len(row) == 1 for row in verdicts):
        right = sum(row[0] for row in verdicts)
        return Estimate(right / len(verdicts), *_wilson(right, len(verdicts)), "wilson")
    shares = [sum(row) / len(row) for row in verdicts]
    return _bootstrapped(shares)


def pass_at(verdicts: Sequence[Sequence[bool]], k: int) -> Estimate:
    """pass@k without bias: the mean over questions of 1 - C(n - c, k) / C(n, k), for c right of n >= k responses
    (arXiv 2107.03374, equation 1). The interval is the percentile bootstrap over questions.

    >>> pass_at([[True, False], [False, False]], 2).value
    0.5
    """
    _check(verdicts)
    fewest = min(len(row) for row in verdicts)
    if not 1 <= k <= fewest:
        raise ValueError(f"pass@{k} needs {k} responses to every question; the fewest are {fewest}")
    return _bootstrapped([1 - math.comb(len(row) - sum(row), k) / math.comb(len(row), k) for row in verdicts])


def ks_up_to(samples: int) -> list[int]:
    """The k that are shown for `samples` responses a question: powers of two, and all of them.

    >>> ks_up_to(12)
    [1, 2, 4, 8, 12]
    """
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def gap_recovered(ours: float, base: float, teacher: float) -> float | None:
    """(student - base student) / (teacher - base student); None where teacher and base are equal.

    >>> gap_recovered(60.0, 50.0, 70.0)
    0.5
    """
    return None if teacher == base else (ours - base) / (teacher - base)


def _check(verdicts: Sequence[Sequence[bool]]) -> None:
    if not verdicts or not all(verdicts):
        raise ValueError("every question needs a verdict, and there must be one question at least")


def _wilson(right: int, count: int) -> tuple[float, float]:
    interval = stats.binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _bootstrapped(values: Sequence[float]) -> Estimate:
    """The mean, with the percentile interval of the means of resampled questions; the same for the same values."""
    array = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(0)
    chunk = max(1, _AT_ONCE // len(array))
    sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    means = np.concatenate([array[random.integers(len(array), size=(size, len(array)))].mean(axis=1) for size in sizes])
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [outside, 1 - outside])
    return Estimate(float(array.mean()), float(low), float(high), "bootstrap")
