"""Alarms: what is told from rows of metrics, with which cause, and what is left alone."""

import random
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.files import read_jsonl
from dopd_vl.health.alarms import Alarm, alarms_at, replay
from dopd_vl.health.collapse import largest_fall
from dopd_vl.health.rows import Column, RunFacts
from dopd_vl.objectives import Dopd, Objective, Opd, Opsd
from dopd_vl.train_config import HealthSettings, TrainConfig

RECORDED = Path(__file__).parent / "recorded_metrics"
"""100 steps of 32 rollouts on the nano text world, a learning rate of 3e-3 (opd-rises: 1e-3), seed 0"""
SETTINGS = HealthSettings()


def facts(objective: Objective, **changes: Any) -> RunFacts:
    usual = {"rollouts_per_row": 32, "logging_steps": 1, "learning_rate": 3e-3, "max_completion_length": 48}
    return RunFacts(objective, **{**usual, **changes})


def rows_of(steps: int = 30, **columns: Any) -> list[dict[str, Any]]:
    """Rows of a run that stands still, but for the columns given: a value, or one for each step; `__` is a slash."""
    still = {"loss": 0.3, "token_loss": 0.3, "grad_norm": 1.0, "entropy": 0.3}
    rows = []
    for i in range(steps):
        given = {
            name.replace("__", "/"): value[i] if isinstance(value, list) else value for name, value in columns.items()
        }
        rows.append({"step": i + 1, **still, **given})
    return rows


def kinds(alarms: list[Alarm]) -> dict[str, int]:
    return {alarm.kind: alarm.step for alarm in alarms}


def told(rows: list[dict[str, Any]], objective: Objective, settings: HealthSettings = SETTINGS) -> dict[str, str]:
    return {alarm.kind: alarm.message for alarm in alarms_at(rows, facts(objective), settings)}


# ---- collapse --------------------------------------------------------------------------------------------------------


def test_a_fall_is_measured_against_what_chance_allows() -> None:
    # p = (0.5 + 0.1) / 2 = 0.3; 2 p (1 - p) / n = 2 * 0.21 / 100 = 0.0042; z = 0.4 / 0.0648 = 6.17.
    # Three windows of two rows make three pairs, twice that with those between: the quantile 1 - 0.01 / 6 of the normal
    # distribution is 2.935.
    fall = largest_fall(Column([0.5, 0.5, 0.5, 0.5, 0.1, 0.1]), window=2, rollouts_per_row=50, significance=0.01)
    assert fall is not None
    assert (fall.best, fall.now, fall.best_start) == pytest.approx((0.5, 0.1, 0))
    assert fall.z == pytest.approx(6.172, abs=1e-3)
    assert fall.needed == pytest.approx(2.935, abs=1e-3)


def test_rows_that_scatter_more_than_rollouts_by_themselves_weaken_a_fall() -> None:
    # Neighbours differ by 0.4: variance 0.08 a row, where p = 0.3 of 50 rollouts has 0.0042. phi = 19.05, so z falls by
    # a factor of 4.364.
    fall = largest_fall(Column([0.7, 0.3, 0.5, 0.5, 0.3, -0.1]), window=2, rollouts_per_row=50, significance=0.01)
    assert fall is not None
    assert fall.z == pytest.approx(6.172 / 4.364, abs=1e-2)


def test_windows_that_share_rows_are_not_compared() -> None:
    assert largest_fall(Column([0.5, 0.5, 0.0]), window=2, rollouts_per_row=50, significance=0.01) is None
    assert largest_fall(Column([0.0, 0.0, 0.0, 0.0]), window=2, rollouts_per_row=50, significance=0.01) is None


def test_an_accuracy_that_stands_still_seldom_looks_like_a_fall() -> None:
    chance = random.Random(0)
    fallen = 0
    for _ in range(200):
        series = [sum(chance.random() < 0.4 for _ in range(16)) / 16 for _ in range(60)]
        falls = [largest_fall(Column(series[:end]), 10, 16, SETTINGS.significance) for end in range(20, 61)]
        fallen += any(fall is not None and fall.z > fall.needed for fall in falls)
    assert fallen <= 6  # 1 % of 200 are 2; more than 6 has a chance of one in 200


def test_dopd_that_teaches_its_own_decay_is_told_with_its_setting() -> None:
    # From step 15 on 2 points a step are lost: 40 % of 0.4 by step 23.
    accuracy = [0.4] * 15 + [max(0.0, 0.4 - 0.02 * i) for i in range(1, 26)]
    share = [0.19] * 15 + [0.19 + 0.01 * i for i in range(1, 26)]
    rows = rows_of(40, rollout_accuracy=accuracy, token_share__HS=share)
    (alarm,) = replay(rows, facts(Dopd()), SETTINGS)
    assert alarm.kind == "collapse"
    assert 15 < alarm.step <= 35
    assert "HS share 19 % -> " in alarm.message
    assert "live copy teaches its own decay; set objective.settings.student_policy: start" in alarm.message


@pytest.mark.parametrize(
    ("objective", "remedy"),
    [
        (Dopd(student_policy="start"), "lower training.learning_rate (now 0.003)"),
        (Dopd(student_view="plain"), "lower training.learning_rate (now 0.003)"),
        (Opd(), "lower training.learning_rate (now 0.003)"),
        (Opsd(teacher_policy="student"), "set objective.settings.teacher_policy: start"),
    ],
)
def test_the_cause_follows_who_teaches(objective: Objective, remedy: str) -> None:
    rows = rows_of(30, rollout_accuracy=[0.5] * 20 + [0.1] * 10, entropy=[0.3] * 20 + [0.2] * 10)
    message = told(rows, objective)["collapse"]
    assert "10 % of the rollouts of steps 21-30 are right, 50 % were in steps 1-10; entropy 0.30 -> 0.20" in message
    assert remedy in message


def test_accuracy_that_halves_while_entropy_grows_is_no_collapse() -> None:
    accuracy, entropy = [0.4] * 15 + [0.2] * 15, [0.3] * 15 + [0.5] * 15
    assert told(rows_of(30, rollout_accuracy=accuracy, entropy=entropy), Opd()) == {}
    # The same fall with less entropy than before is one, and so is a greater fall by itself.
    assert set(told(rows_of(30, rollout_accuracy=accuracy, entropy=[0.3] * 15 + [0.2] * 15), Opd())) == {"collapse"}
    assert set(told(rows_of(30, rollout_accuracy=[0.4] * 15 + [0.1] * 15, entropy=entropy), Opd())) == {"collapse"}


def test_a_fall_that_few_rollouts_can_show_by_chance_is_not_told() -> None:
    rows = rows_of(30, rollout_accuracy=[0.5] * 20 + [0.3] * 10, entropy=[0.3] * 20 + [0.2] * 10)
    assert alarms_at(rows, facts(Opd(), rollouts_per_row=2), SETTINGS) == []
    assert alarms_at(rows, facts(Opd(), rollouts_per_row=64), SETTINGS) != []


def test_without_a_verifier_the_gap_that_grows_again_is_told() -> None:
    # The gap shrinks to 0.6, then grows: 0.84 is 1.4 times that, and 1.05 times the start, which is not enough.
    gap = [0.8] * 10 + [0.6] * 10 + [0.84] * 10
    assert told(rows_of(30, gap__mean=gap), Dopd()) == {}
    message = told(rows_of(30, gap__mean=[*gap[:20], *[1.0] * 10]), Dopd())["collapse"]
    assert "mean gap between teacher and copy 0.60 -> 1.00 nats" in message
    assert "student_policy: start" in message


def test_without_a_verifier_and_a_gap_two_other_signs_are_needed() -> None:
    length = {"completions__mean_length": [20.0] * 15 + [45.0] * 15}
    teacher = {"entropy__teacher__plain": [0.03] * 15 + [0.09] * 15}
    assert told(rows_of(30, **length), Opd()) == {}
    assert told(rows_of(30, **teacher), Opd()) == {}
    message = told(rows_of(30, **length, **teacher), Opd())["collapse"]
    assert "the teacher's entropy over the responses has doubled, response length 20 -> 45 tokens" in message


# ---- the other kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "token_loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_told_at_once(name: str, value: float) -> None:
    rows = rows_of(3, **{name: [0.3, 0.3, value]})
    assert f"{name} is {value}" in told(rows, Opd())["non_finite"]
    assert told(rows[:2], Opd()) == {}


def test_single_infinities_of_fp16_can_be_let_pass() -> None:
    inf = float("inf")
    settings = HealthSettings(non_finite_steps=3)
    assert told(rows_of(5, grad_norm=[1.0, inf, inf, 1.0, inf]), Opd(), settings) == {}
    assert set(told(rows_of(5, grad_norm=[1.0, 1.0, inf, inf, inf]), Opd(), settings)) == {"non_finite"}
    assert told(rows_of(2, grad_norm=inf), Opd(), settings) == {}


def test_a_sure_student_is_told_of_only_while_it_is_wrong() -> None:
    entropy = [0.3] * 15 + [0.05] * 15  # a sixth
    wrong = told(rows_of(30, entropy=entropy, rollout_accuracy=0.3), Opd())
    assert "fell from 0.30 to 0.050 nats while 30 % of the rollouts are right" in wrong["entropy"]
    assert told(rows_of(30, entropy=entropy, rollout_accuracy=0.8), Opd()) == {}
    assert told(rows_of(30, entropy=entropy), Opd()) == {}


def test_a_regime_without_tokens_or_with_all_is_told_where_tokens_are_routed() -> None:
    shares = {"token_share__LH": 0.7, "token_share__LL": 0.1, "token_share__HT": 0.0, "token_share__HS": 0.2}
    assert "no token was HT in 20 steps" in told(rows_of(20, **shares), Dopd())["regime"]
    assert told(rows_of(19, **shares), Dopd()) == {}
    gone = told(rows_of(40, **{**shares, "token_share__HT": [0.05] * 20 + [0.0] * 20}), Dopd())["regime"]
    assert "no token was HT in 20 steps, 5 % were at the start. Likely cause: the student's live copy" in gone
    assert told(rows_of(20, **{**shares, "token_share__HT": [0.0] * 19 + [0.01]}), Dopd()) == {}
    assert told(rows_of(20, **shares), Dopd(routing=False)) == {}
    everything = {"token_share__HT": 1.0, "token_share__HS": 0.1, "token_share__LH": 0.1, "token_share__LL": 0.1}
    assert "every token was HT for 20 steps" in told(rows_of(20, **everything), Dopd())["regime"]


def test_responses_at_the_limit_are_told_with_what_they_were_before() -> None:
    late = told(rows_of(30, completions__clipped_ratio=[0.0] * 20 + [1.0] * 10), Opd())
    assert "100 % of the responses are cut at training.max_completion_length (48 tokens), 0 % were" in late["length"]
    assert "lower training.learning_rate" in late["length"]
    early = told(rows_of(10, completions__clipped_ratio=0.95), Opd())
    assert "95 % of the responses" in early["length"]
    assert "raise it" in early["length"]
    assert told(rows_of(30, completions__clipped_ratio=0.5), Opd()) == {}


def test_no_right_rollout_is_told_after_enough_of_them() -> None:
    assert "have the form that the verifier reads" in told(rows_of(20, rollout_accuracy=0.0), Opd())["no_correct"]
    assert told(rows_of(19, rollout_accuracy=0.0), Opd()) == {}
    assert told(rows_of(20), Opd()) == {}
    # Of 4 rollouts a step, 20 steps are 80 rollouts and say little; 50 steps are 200.
    few = facts(Opd(), rollouts_per_row=4)
    assert alarms_at(rows_of(49, rollout_accuracy=0.0), few, SETTINGS) == []
    assert kinds(alarms_at(rows_of(50, rollout_accuracy=0.0), few, SETTINGS)) == {"no_correct": 50}


def test_windows_are_in_steps_however_often_a_run_logs() -> None:
    accuracy = [0.5] * 4 + [0.1] * 2
    still = rows_of(6, rollout_accuracy=accuracy, entropy=[0.3] * 4 + [0.2] * 2)
    rows = [{**row, "step": 5 * (i + 1)} for i, row in enumerate(still)]
    (alarm,) = alarms_at(rows, facts(Opd(), logging_steps=5, rollouts_per_row=160), SETTINGS)
    assert alarm.kind == "collapse"
    assert "steps 25-30 are right, 50 % were in steps 5-10" in alarm.message


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "objective"),
    [
        ("opd-rises", Opd()),
        ("opd-forward-kl-dips", Opd(divergence="forward_kl")),
        ("dopd-from-the-start-dips", Dopd(student_policy="start")),
    ],
)
def test_healthy_runs_are_left_alone_with_and_without_a_verifier(recorded: str, objective: Objective) -> None:
    rows = read_jsonl(RECORDED / f"{recorded}.jsonl")
    assert len(rows) == 100
    assert replay(rows, facts(objective), SETTINGS) == []
    blind = [{name: value for name, value in row.items() if name != "rollout_accuracy"} for row in rows]
    assert replay(blind, facts(objective), SETTINGS) == []


def test_a_run_that_collapsed_is_told_of_within_20_steps_and_each_kind_once() -> None:
    rows = read_jsonl(RECORDED / "dopd-collapses.jsonl")
    accuracy = [row["rollout_accuracy"] for row in rows]
    assert sum(accuracy[:10]) / 10 > 0.25
    assert sum(accuracy[40:]) / 60 < 0.01
    alarms = replay(rows, facts(Dopd()), SETTINGS)
    assert len({alarm.kind for alarm in alarms}) == len(alarms)
    assert alarms[0].kind == "collapse"
    assert alarms[0].step <= 25
    assert {"length", "entropy", "no_correct"} <= set(kinds(alarms))
    blind = [{name: value for name, value in row.items() if name != "rollout_accuracy"} for row in rows]
    assert kinds(replay(blind, facts(Dopd()), SETTINGS))["collapse"] <= 25


def test_rows_of_evaluations_change_nothing() -> None:
    rows = read_jsonl(RECORDED / "dopd-collapses.jsonl")
    evaluated: list[dict[str, Any]] = [{"step": 0, "eval_accuracy": 0.3}, *rows[:50]]
    evaluated += [{"step": 50, "eval_accuracy": 0.0}, *rows[50:]]
    assert replay(evaluated, facts(Dopd()), SETTINGS) == replay(rows, facts(Dopd()), SETTINGS)
    assert alarms_at(evaluated[:1], facts(Dopd()), SETTINGS) == []


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("window", "0", r"health\.window=0 must be at least 1"),
        ("min_fall", "1.5", r"health\.min_fall=1\.5 must be above 0 and at most 1"),
        ("gap_growth", "1", r"health\.gap_growth=1(\.0)? must be above 1"),
        ("on_alarm", "shout", r"health\.on_alarm"),
    ],
)
def test_wrong_thresholds_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_config(TrainConfig, [f"--health.{name}", value], "test")


def test_steps_without_a_usable_example_say_nothing_of_the_student() -> None:
    """Their entropy is logged as 0, and every kind of token has no tokens."""
    empty = {"entropy": [0.3] * 20 + [0.0] * 20, "token_share__HT": [0.2] * 20 + [0.0] * 20, "rollout_accuracy": 0.1}
    assert {"entropy", "regime"} <= set(told(rows_of(40, **empty), Dopd()))
    assert told(rows_of(40, **empty, usable_rollouts=[1.0] * 20 + [0.0] * 20), Dopd()) == {}
