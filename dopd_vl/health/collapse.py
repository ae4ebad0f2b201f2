"""Whether a student is losing what it could do, and why.

With a verifier: rollout_accuracy of the last `window` steps is below that of the best earlier window, by more than a
share of it (`min_fall` where another sign agrees, `min_fall_alone` otherwise) and by more than chance allows:

    p_0, p_1   shares of right rollouts in the best and in the last window, n rollouts each
    z        = (p_0 - p_1) / sqrt(2 phi p (1 - p) / n),   p = (p_0 + p_1) / 2
    phi      = variance of a row's share over the binomial one, at least 1: rollouts of one prompt are alike
    z must exceed the quantile 1 - significance / m,  m = window k (k - 1) / 2 for k windows side by side so far, since
    windows that overlap are tests as well

A healthy run dips as well: forward KL first widens the student (entropy grows, accuracy may halve) and brings it back.
Hence the signs. Entropy falls in healthy runs too; where any other sign agrees, such as more tokens that the student's
own copy teaches, a single test at `significance` will do. Where the gap between teacher and copy has grown for good
(`gap_growth`), half of `min_fall` and a test at 5 %. Without a verifier the signs alone decide.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist, variance
from typing import NamedTuple

from dopd_vl.health.rows import Column, History, Row, RunFacts, mean, per_cent, values
from dopd_vl.objectives.base import Advice
from dopd_vl.train_config import HealthSettings

GAP_ERRORS = 5.0
"""Standard errors that the gap must have grown by: the gap of a student that is nearly right is small and scatters."""


class Fall(NamedTuple):
    """Rollout accuracy of two windows."""

    best: float
    now: float
    best_start: int
    """where the best window starts, among the rows that have an accuracy"""
    z: float
    needed: float
    """the z that chance seldom reaches at any step of a run"""


class Sign(NamedTuple):
    """Something that moved as it does in a collapse."""

    name: str
    text: str
    """with both values"""


def collapse(rows: History, facts: RunFacts, settings: HealthSettings) -> str | None:
    """What was lost, the signs that go with it, its likely cause and the setting to change."""
    window = max(2, facts.rows(settings.window))
    if len(rows.column("rollout_accuracy")):
        return _fallen(rows, facts, settings, window)
    if len(rows) < 2 * window:
        return None
    signs = signs_between(rows[:window], rows[-window:], Advice.of(facts.objective).copy_part)
    grown = gap_has_grown(rows, window, settings.gap_growth)
    strong = _strong_signs(rows, window, settings)
    if grown is None and len(strong) < 2:
        return None
    shown = [sign.text for sign in [*([grown] if grown else []), *strong]]
    shown += [sign.text for sign in signs if sign.name == "copy"]
    return f"the student drifts away from its teacher: {', '.join(shown)}. {cause(facts, signs)}"


def _fallen(rows: History, facts: RunFacts, settings: HealthSettings, window: int) -> str | None:
    accuracy = rows.column("rollout_accuracy")
    judged = accuracy.rows
    fall = largest_fall(accuracy, window, facts.rollouts_per_row, settings.significance)
    if fall is None:
        return None
    best, last = judged[fall.best_start : fall.best_start + window], judged[-window:]
    signs = signs_between(best, last, Advice.of(facts.objective).copy_part)
    if gap_has_grown(rows, window, settings.gap_growth):
        least, needed = settings.min_fall / 2, quantile(0.95)
    elif any(sign.name != "entropy" for sign in signs):
        least, needed = settings.min_fall, quantile(1 - settings.significance)
    else:
        least, needed = settings.min_fall if signs else settings.min_fall_alone, fall.needed
    if fall.z < needed or fall.now > (1 - least) * fall.best:
        return None
    told = [sign.text for sign in signs]
    return (
        f"{per_cent(fall.now)} of the rollouts of steps {last[0]['step']}-{last[-1]['step']} are right, "
        f"{per_cent(fall.best)} were in steps {best[0]['step']}-{best[-1]['step']}"
        f"{'; ' + ', '.join(told) if told else ''}. {cause(facts, signs)}"
    )


def largest_fall(accuracy: Column, window: int, rollouts_per_row: int, significance: float) -> Fall | None:
    """The best earlier window against the last one; None while there are not two, or nothing was ever right."""
    earlier = accuracy.extreme_before_last(window, largest=True)
    if earlier is None or earlier[0] == 0:
        return None
    (best, start), now = earlier, mean(accuracy[-window:])
    p = (best + now) / 2
    binomial = p * (1 - p) / rollouts_per_row
    if binomial == 0:  # all right, then as now
        return None
    # Neighbours' differences: a trend within a window is no noise.
    both = (accuracy[start : start + window], accuracy[-window:])
    differences = [(b - a) ** 2 / 2 for part in both for a, b in pairwise(part)]
    phi = max(1.0, mean(differences) / binomial)
    windows = len(accuracy) / window
    needed = quantile(1 - significance / (window * windows * (windows - 1) / 2))
    return Fall(best, now, start, (best - now) / math.sqrt(2 * phi * binomial / window), needed)


def quantile(share: float) -> float:
    """Of the standard normal distribution."""
    return NormalDist().inv_cdf(share)


def signs_between(before: Sequence[Row], now: Sequence[Row], copy_part: str | None) -> list[Sign]:
    """What moved between two windows as it does in a collapse; `copy_part` as `Advice` has it."""
    signs = []

    def pair(name: str) -> tuple[float, float] | None:
        a, b = values(before, name), values(now, name)
        return (mean(a), mean(b)) if a and b else None

    shares = pair(f"token_share/{copy_part}")
    if shares and shares[1] >= 1.2 * shares[0] and shares[1] - shares[0] >= 0.01:
        signs.append(Sign("copy", f"{copy_part} share {per_cent(shares[0])} -> {per_cent(shares[1])}"))
    gap = pair("gap/mean")
    if gap and gap[1] >= 1.2 * gap[0]:
        signs.append(Sign("gap", f"mean gap between teacher and copy {gap[0]:.2f} -> {gap[1]:.2f} nats"))
    entropy = pair("entropy")
    if entropy and entropy[1] <= 0.8 * entropy[0]:
        signs.append(Sign("entropy", f"entropy {entropy[0]:.2f} -> {entropy[1]:.2f} nats"))
    length = pair("completions/mean_length")
    if length and not length[0] / 1.5 < length[1] < 1.5 * length[0]:
        signs.append(Sign("length", f"response length {length[0]:.0f} -> {length[1]:.0f} tokens"))
    clipped = pair("completions/clipped_ratio")
    if clipped and clipped[1] >= clipped[0] + 0.2:
        signs.append(Sign("clipped", f"cut responses {per_cent(clipped[0])} -> {per_cent(clipped[1])}"))
    return signs


def gap_has_grown(rows: History, window: int, growth: float) -> Sign | None:
    """The mean gap of teacher and copy is `growth` times its lowest earlier window, above its start, and no noise.

    As a student learns, the two agree more and more about what it samples. That they part again is the earliest sign
    that what it samples is no longer what the teacher knows.
    """
    gaps = rows.column("gap/mean")
    earlier = gaps.extreme_before_last(window, largest=False)
    if earlier is None:
        return None
    (lowest, start), now = earlier, mean(gaps[-window:])
    error = math.sqrt((variance(gaps[start : start + window]) + variance(gaps[-window:])) / window)
    if now < growth * lowest or now < 1.2 * mean(gaps[:window]) or now - lowest < GAP_ERRORS * error:
        return None
    return Sign("gap", f"mean gap between teacher and copy {lowest:.2f} -> {now:.2f} nats")


def teacher_is_lost(rows: History, window: int) -> bool:
    """Whether the teacher's entropy over what the student writes is twice what it was at the start."""
    names = [name for name in rows[-1] if name.startswith("entropy/teacher/")]
    series = [column for column in map(rows.column, names) if len(column) >= window]
    return any(mean(column[-window:]) >= 2 * mean(column[:window]) for column in series)


def cause(facts: RunFacts, signs: Sequence[Sign]) -> str:
    """One sentence with the setting to change."""
    learning_rate = f"training.learning_rate (now {facts.learning_rate:g})"
    remedy = Advice.of(facts.objective).live_copy_remedy
    if remedy and any(s.policy == "student" and s.view != "plain" for s in facts.objective.sources()):
        return f"Likely cause: the student's live copy teaches its own decay; {remedy}"
    if any(sign.name in ("length", "clipped") for sign in signs):
        return f"Likely cause: steps too large, responses come apart; lower {learning_rate}"
    return f"Likely cause: steps too large; lower {learning_rate} or raise training.warmup_steps"


def _strong_signs(rows: History, window: int, settings: HealthSettings) -> list[Sign]:
    """Signs that no healthy run shows two of: nearly no entropy, a teacher at a loss, responses of another length."""
    start, now = rows[:window], rows[-window:]
    strong = []
    entropy = values(start, "entropy"), values(now, "entropy")
    if all(entropy) and mean(entropy[1]) <= settings.entropy_share * mean(entropy[0]):
        strong.append(Sign("entropy", f"entropy {mean(entropy[0]):.2f} -> {mean(entropy[1]):.3f} nats"))
    if teacher_is_lost(rows, window):
        strong.append(Sign("teacher", "the teacher's entropy over the responses has doubled"))
    strong += [sign for sign in signs_between(start, now, None) if sign.name in ("length", "clipped")][:1]
    return strong
