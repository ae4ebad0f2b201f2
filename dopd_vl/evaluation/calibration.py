"""Does a model that is sure of a response get it right?"""

import math
from collections.abc import Sequence

CALIBRATION_BINS = 10


def calibration_error(judged: Sequence[tuple[float, bool]]) -> float:
    """Expected calibration error (arXiv 1706.04599): by ten equal bins of confidence, |mean confidence - accuracy|.
    NaN where a confidence is, as of a model that diverged.

    A bin counts by its share of the responses. The confidence is that of one exact wording: a model that knows the
    answer and several ways to say it counts as unsure.

    Args:
        judged: (confidence, correct) of each response.

    >>> calibration_error([(0.9, True), (0.95, False)])
    0.425
    """
    if any(math.isnan(confidence) for confidence, _ in judged):
        return math.nan
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, correct in judged:
        bins.setdefault(min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1), []).append((confidence, correct))
    gaps = (abs(sum(c for c, _ in some) - sum(right for _, right in some)) for some in bins.values())
    return sum(gaps) / len(judged) if judged else 0.0
