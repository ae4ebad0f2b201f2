"""Whether a run is going wrong, from the rows that it logs anyway: what happened, the likely cause, what to change.

`alarms_at(rows, facts, settings)` judges the last row by those before it and by nothing else, so a run that is taken up
again says what an uninterrupted one says, and any metrics.jsonl can be judged afterwards (`replay`).

    non_finite   loss or gradient norm is NaN or infinite
    collapse     the student loses what it could do (`collapse.py`)
    entropy      entropy is a small share of its start while the student is wrong
    regime       a kind of token that the objective tells apart has all tokens or none
    length       responses end at the length limit
    no_correct   no rollout was right for many steps
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dopd_vl.common.files import is_number
from dopd_vl.health.collapse import cause, collapse, teacher_is_lost
from dopd_vl.health.rows import History, Row, RunFacts, mean, per_cent, values
from dopd_vl.objectives.base import Advice
from dopd_vl.train_config import HealthSettings

FEWEST_ROLLOUTS = 200
"""that must all be wrong before it is said that none is right: at a true share of 2 % that happens to one run in 57"""
WRONG = 0.5
"""A student that is right less often than this has no ground to be as sure as its entropy says."""
STUCK = 0.001
"""A share of tokens nearer than this to 0 or to 1 has come to a stop."""


class Alarm(NamedTuple):
    """One line about one run, once."""

    kind: str
    step: int
    message: str


def alarms_at(rows: Sequence[Row], facts: RunFacts, settings: HealthSettings) -> list[Alarm]:
    """What is wrong at the last of the rows of metrics.jsonl, judged by all of them.

    One `History` to which a run adds its rows costs no more at its end than at its start.
    """
    logged = rows if isinstance(rows, History) else History(rows)
    if not logged:
        return []
    step = int(logged[-1]["step"])
    found = ((kind, rule(logged, facts, settings)) for kind, rule in RULES.items())
    return [Alarm(kind, step, message) for kind, message in found if message is not None]


def replay(rows: Sequence[Row], facts: RunFacts, settings: HealthSettings) -> list[Alarm]:
    """The alarms of a whole run: each kind at the first step that it holds at."""
    so_far = History()
    first: dict[str, Alarm] = {}
    for row in rows:
        for alarm in alarms_at(so_far, facts, settings) if so_far.add(row) else ():
            first.setdefault(alarm.kind, alarm)
    return list(first.values())


def non_finite(rows: Sequence[Row], facts: RunFacts, settings: HealthSettings) -> str | None:
    """NaN or infinity in loss or gradient norm, `non_finite_steps` steps in a row."""
    last = rows[-settings.non_finite_steps :]
    # transformers leaves NaN out of `loss` unless told otherwise; `token_loss` and the gradient norm have it.
    names = ("loss", "token_loss", "grad_norm")
    bad = [name for name in names if name in last[-1] and not is_number(last[-1][name])]
    every = all(any(name in row and not is_number(row[name]) for name in names) for row in last)
    if not bad or not every or len(last) < settings.non_finite_steps:
        return None
    what = " and ".join(f"{name} is {last[-1][name]}" for name in bad)
    return (
        f"{what}: the weights are lost. Begin anew from best/ or the last checkpoint with a lower "
        f"training.learning_rate (now {facts.learning_rate:g}) or training.max_grad_norm; with trl.fp16 use "
        "training.bf16 instead"
    )


def entropy(rows: History, facts: RunFacts, settings: HealthSettings) -> str | None:
    """Sure and wrong: entropy under `entropy_share` of its start, and most rollouts wrong (or the teacher lost)."""
    window = facts.rows(settings.window)
    series = rows.column("entropy")
    if len(series) < 2 * window:
        return None
    start, now = mean(series[:window]), mean(series[-window:])
    if now > settings.entropy_share * start:
        return None
    accuracy = values(rows[-window:], "rollout_accuracy")
    if accuracy:
        wrong = mean(accuracy) < WRONG
        evidence = f"while {per_cent(mean(accuracy))} of the rollouts are right"
    else:
        wrong = teacher_is_lost(rows, window)
        evidence = "while the teacher is at a loss over what it writes"
    if not wrong:
        return None
    return (
        f"the student's entropy fell from {start:.2f} to {now:.3f} nats {evidence}: it repeats itself. "
        f"{cause(facts, [])}"
    )


def regime(rows: History, facts: RunFacts, settings: HealthSettings) -> str | None:
    """A part of the tokens that an objective tells apart by their scores stands at 0 or 1."""
    patience = facts.rows(settings.patience)
    if len(rows) < patience:
        return None
    for part, stuck in Advice.of(facts.objective).stuck_parts.items():
        shares = values(rows[-patience:], f"token_share/{part}")
        if len(shares) < patience:
            continue
        steps = patience * facts.logging_steps
        if max(shares) <= STUCK:
            before = mean(rows.column(f"token_share/{part}")[:patience])
            if before > 10 * STUCK:
                return f"no token was {part} in {steps} steps, {per_cent(before)} were at the start. {cause(facts, [])}"
            return f"no token was {part} in {steps} steps: {stuck.at_none}"
        if min(shares) >= 1 - STUCK:
            return f"every token was {part} for {steps} steps: {stuck.at_every}"
    return None


def length(rows: History, facts: RunFacts, settings: HealthSettings) -> str | None:
    """Nearly every response was cut at the limit, over a whole window."""
    window = facts.rows(settings.window)
    clipped = rows.column("completions/clipped_ratio")
    if len(clipped) < window or mean(clipped[-window:]) < settings.clipped_share:
        return None
    now, limit = per_cent(mean(clipped[-window:])), facts.max_completion_length
    if mean(clipped[:window]) < settings.clipped_share:
        return (
            f"{now} of the responses are cut at training.max_completion_length ({limit} tokens), "
            f"{per_cent(mean(clipped[:window]))} were at the start: the student no longer ends them. "
            f"{cause(facts, [])}"
        )
    return (
        f"{now} of the responses are cut at training.max_completion_length ({limit} tokens) from the start: raise it, "
        "or shorten them (for Qwen3, chat_template_kwargs.enable_thinking: false)"
    )


def no_correct(rows: History, facts: RunFacts, settings: HealthSettings) -> str | None:
    """Not one right rollout, in many steps and many rollouts."""
    rows_needed = max(facts.rows(settings.patience), math.ceil(FEWEST_ROLLOUTS / facts.rollouts_per_row))
    accuracy = rows.column("rollout_accuracy")
    if len(accuracy) < rows_needed or any(accuracy[-rows_needed:]):
        return None
    steps = rows_needed * facts.logging_steps
    right_before = accuracy.extreme_before_last(1, largest=True)
    if right_before is not None and right_before[0] > 0:
        return (
            f"no rollout was right in {steps} steps, though some were before: go back to best/ with a lower "
            f"training.learning_rate (now {facts.learning_rate:g})"
        )
    return (
        f"no rollout was right in {steps} steps: look at rollouts.jsonl whether the answers have the form that the "
        "verifier reads and training.max_completion_length lets them end; else begin with easier examples (data.train) "
        "or a stronger model.student"
    )


Rule = Callable[[History, RunFacts, HealthSettings], str | None]

RULES: dict[str, Rule] = {
    "non_finite": non_finite,
    "collapse": collapse,
    "entropy": entropy,
    "regime": regime,
    "length": length,
    "no_correct": no_correct,
}
