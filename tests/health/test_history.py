"""A run is judged alike whether its rows are looked at one by one or all at once, with work that is linear in them."""

import random
from typing import Any

import pytest

from dopd_vl.health import rows as module
from dopd_vl.health.alarms import alarms_at
from dopd_vl.health.rows import Column, History, RunFacts
from dopd_vl.objectives import Dopd
from dopd_vl.train_config import HealthSettings

FACTS = RunFacts(Dopd(), rollouts_per_row=16, logging_steps=1, learning_rate=1e-3, max_completion_length=64)


def rows_of(count: int) -> list[dict[str, float]]:
    chance = random.Random(1)
    names = ("entropy", "gap/mean", "rollout_accuracy", "completions/clipped_ratio", "entropy/teacher/privileged")
    return [{"step": n, "loss": 1.0, **{name: chance.random() for name in names}} for n in range(1, count + 1)]


def test_a_history_that_grows_is_judged_as_one_that_is_read_at_once() -> None:
    settings, history = HealthSettings(window=5), History()
    rows = rows_of(120)
    for end, row in enumerate(rows, 1):
        if end % 10 == 0:
            history.add({"step": end, "eval_accuracy": 0.5})
        history.add(row)
        assert alarms_at(history, FACTS, settings) == alarms_at(rows[:end], FACTS, settings)


def test_the_best_window_before_the_last_is_that_of_the_definition() -> None:
    chance = random.Random(2)
    numbers = [chance.random() for _ in range(60)]
    grown = History()
    for end in range(1, 61):
        grown.add({"step": end, "loss": 1.0, "x": numbers[end - 1]})
        for window in (1, 4, 7):
            means = [sum(numbers[start : start + window]) / window for start in range(end - 2 * window + 1)]
            for largest in (True, False):
                found = grown.column("x").extreme_before_last(window, largest)
                assert found == Column(numbers[:end]).extreme_before_last(window, largest)
                best = (max(means) if largest else min(means)) if means else None
                assert found == (None if best is None else (best, means.index(best)))


def test_each_row_is_looked_at_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    for size in (200, 400):
        count, of_module = 0, module.is_number

        def counted(value: object, original: Any = of_module) -> bool:
            nonlocal count
            count += 1
            return bool(original(value))

        monkeypatch.setattr(module, "is_number", counted)
        history = History()
        for row in rows_of(size):
            history.add(row)
            alarms_at(history, FACTS, HealthSettings(window=5))
        monkeypatch.setattr(module, "is_number", of_module)
        looks.append(count)
    assert looks[1] < 2.2 * looks[0]
