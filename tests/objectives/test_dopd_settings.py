"""DOPD's ablations are settings: regimes, routing, views, the copy's weights, dropped tokens."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from helpers import check_loss, js, kl, likeliest, nothing_to_learn, random_batch, sampled, softmax, with_bucket

from dopd_vl.common.configuration import settings_of
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.core import Plan, Regime, Source, Term, execute_plan
from dopd_vl.objectives import Dopd
from dopd_vl.objectives.common import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER

LH, LL, HT, HS = Regime.LH, Regime.LL, Regime.HT, Regime.HS

# Tokens in the order LH, LL, HT, HS. A: ln(9/8) = .118, 0, ln 8 = 2.079, ln 6 = 1.792, mean .997; the means of q_T and
# q_S are .5 and .425, their sum .925. Token 0: 1.7 above, token 1: .4 below; token 2: q_T larger; token 3: q_S larger.
FOUR = {PRIVILEGED_TEACHER: [[0.9, 0.2, 0.8, 0.1]], PRIVILEGED_STUDENT: [[0.8, 0.2, 0.1, 0.6]]}
ALL = [[1, 1, 1, 1]]


def taught(plan: Plan) -> dict[int, tuple[str, str, str, float]]:
    """Token -> (source, divergence, support, weight) of the single term that applies to it."""
    found: dict[int, tuple[str, str, str, float]] = {}
    for term in plan.terms:
        assert isinstance(term, Term)
        for token in term.weight.flatten().nonzero().flatten().tolist():
            assert token not in found
            weight = round(term.weight.flatten()[token].item(), 6)
            found[token] = (str(term.source), term.divergence, term.support, weight)
    return found


TEACHER_LH = ("teacher/privileged", "reverse_kl", "top_k", 0.6)
STUDENT_LL = ("student/privileged", "reverse_kl", "top_k", 0.3)
TEACHER_HT = ("teacher/privileged", "js", "full", 1.0)
STUDENT_HS = ("student/privileged", "reverse_kl", "top_k", 0.6)
PUBLISHED = {0: TEACHER_LH, 1: STUDENT_LL, 2: TEACHER_HT, 3: STUDENT_HS}


def four(**settings: Any) -> dict[int, tuple[str, str, str, float]]:
    return taught(Dopd(trim_fraction=0.0, **settings).decide(sampled(FOUR, ALL)).plan)


def test_by_default_each_regime_is_taught_as_published():
    assert four() == PUBLISHED


def test_dopds_loss_is_the_published_formula():
    objective = Dopd(top_k=3, trim_fraction=0.0)
    batch = random_batch(objective, seed=2)
    q = {
        source: np.take_along_axis(softmax(z.detach().numpy()), batch.ids.numpy()[..., None], -1)[..., 0]
        for source, z in batch.logits.items()
    }
    q_T, q_S, mask = q[PRIVILEGED_TEACHER], q[PRIVILEGED_STUDENT], batch.mask.numpy()
    A = np.abs(np.log(q_T) - np.log(q_S))
    regimes = set()

    def naive(here, S, at, y):
        T, P = here[PRIVILEGED_TEACHER], here[PRIVILEGED_STUDENT]
        if A[at] < A[mask].mean():
            sure = q_T[at] + q_S[at] >= q_T[mask].mean() + q_S[mask].mean()
            source, weight = (T, 0.6) if sure else (P, 0.3)
            regimes.add("LH" if sure else "LL")
        elif q_T[at] >= q_S[at]:
            regimes.add("HT")
            return js(S, T)
        else:
            regimes.add("HS")
            source, weight = P, 0.6
        chosen = likeliest(source, 3)
        return weight * kl(with_bucket(S, chosen), with_bucket(source, chosen))

    check_loss(objective, naive, seed=2)
    assert regimes == {"LH", "LL", "HT", "HS"}


@pytest.mark.parametrize("seed", range(3))
def test_the_general_plan_without_a_change_is_the_published_plan(seed: int):
    settings: dict[str, Any] = {"beta_light": 0.5, "beta_weak": 0.2, "top_k": 3, "tail": "drop"}
    published, general = Dopd(**settings), Dopd(**settings, regimes={"HT": {}})
    batch = random_batch(published, seed)
    plans = [objective.decide(batch.scores(objective)).plan for objective in (published, general)]
    assert plans[0].reduction == plans[1].reduction
    for one, other in zip(plans[0].terms, plans[1].terms, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert {**vars(one), "weight": None} == {**vars(other), "weight": None}


@pytest.mark.parametrize(
    ("regimes", "changes"),
    [
        ({"HS": {"source": "teacher"}}, {3: ("teacher/privileged", "reverse_kl", "top_k", 0.6)}),
        ({"HT": {"source": "student", "weight": 0.5}}, {2: ("student/privileged", "js", "full", 0.5)}),
        ({"LL": {"divergence": "forward_kl"}}, {1: ("student/privileged", "forward_kl", "top_k", 0.3)}),
        ({"LH": {"support": "sampled"}}, {0: ("teacher/privileged", "reverse_kl", "sampled", 0.6)}),
    ],
)
def test_a_regime_is_taught_what_is_set_and_the_others_what_is_published(regimes: dict, changes: dict):
    assert four(regimes=regimes) == PUBLISHED | changes


def test_a_regime_can_be_switched_off():
    assert four(regimes={"LH": {"enabled": False}, "HS": {"enabled": False}}) == {1: STUDENT_LL, 2: TEACHER_HT}


def test_adaptive_divergence_and_granularity_can_be_switched_off():
    every = ("LH", "LL", "HT", "HS")
    assert {d for _, d, _, _ in four(regimes={r: {"divergence": "js"} for r in every}).values()} == {"js"}
    assert {s for _, _, s, _ in four(regimes={r: {"support": "top_k"} for r in every}).values()} == {"top_k"}


def test_without_routing_every_token_is_taught_as_ht():
    assert four(routing=False) == dict.fromkeys(range(4), TEACHER_HT)
    uniform = ("teacher/privileged", "js", "top_k", 1.0)
    assert four(routing=False, regimes={"HT": {"support": "top_k"}}) == dict.fromkeys(range(4), uniform)
    decision = Dopd(routing=False).decide(sampled(FOUR, [[1, 1, 1, 0]]))
    assert decision.parts["HT"].tolist() == [[True, True, True, False]]
    assert decision.values == {}


def test_routing_off_is_uniform_js_to_the_teacher():
    check_loss(Dopd(routing=False), lambda here, S, at, y: js(S, here[PRIVILEGED_TEACHER]))


@pytest.mark.parametrize("teacher_view", ["privileged", "plain"])
@pytest.mark.parametrize("student_view", ["privileged", "plain"])
@pytest.mark.parametrize("policy", ["student", "average", "start"])
def test_views_and_the_copys_weights_change_the_sources_and_nothing_else(teacher_view, student_view, policy):
    teacher, student = Source("teacher", teacher_view), Source(policy, student_view)
    objective = Dopd(trim_fraction=0.0, teacher_view=teacher_view, student_view=student_view, student_policy=policy)
    assert objective.sources() == (teacher, student)
    given = {teacher: FOUR[PRIVILEGED_TEACHER], student: FOUR[PRIVILEGED_STUDENT]}
    plan = objective.decide(sampled(given, ALL)).plan
    names = {"teacher/privileged": str(teacher), "student/privileged": str(student)}
    assert taught(plan) == {token: (names[name], *rest) for token, (name, *rest) in PUBLISHED.items()}


def test_the_copy_without_privileged_input_is_the_student_itself_and_teaches_nothing():
    objective = Dopd(
        student_view="plain", regimes={r: {"source": "student"} for r in ("LH", "LL", "HT", "HS")}, top_k=3
    )
    batch = random_batch(objective)
    plan = objective.decide(batch.scores(objective)).plan
    execute_plan(plan, batch.student, batch.logits, batch.ids, batch.mask).sum().backward()
    torch.testing.assert_close(batch.student.grad, torch.zeros_like(batch.student))


# ---- dropped tokens -------------------------------------------------------------------------------------------------

# Ten tokens of two responses; the gap of token i (counted over both) is i * ln 1.2, but for the masked ones.
GAPS = [[0.1, 0.12, 0.144, 0.1728, 0.20736, 0.9], [0.248832, 0.2985984, 0.35831808, 0.429981696, 0.5159780352, 0.9]]
TEN = {PRIVILEGED_TEACHER: GAPS, PRIVILEGED_STUDENT: [[0.1] * 6] * 2}
TEN_MASK = [[1, 1, 1, 1, 1, 0]] * 2


@pytest.mark.parametrize(("drop", "expected"), [("smallest", [0, 1]), ("largest", [8, 9])])
def test_the_tokens_of_smallest_or_largest_gap_are_dropped(drop: str, expected: list[int]):
    decision = Dopd(drop=drop).decide(sampled(TEN, TEN_MASK))  # type: ignore[arg-type]
    dropped = decision.parts["dropped"][:, :5].flatten().nonzero().flatten().tolist()
    assert dropped == expected  # a fifth of ten response tokens; masked ones are not among them
    weight = torch.stack([term.weight for term in decision.plan.terms]).sum(0)
    assert torch.equal(weight > 0, torch.tensor(TEN_MASK).bool() & ~decision.parts["dropped"])


def test_dropping_leaves_gap_and_regimes_as_they_are():
    whole, dropping = (o.decide(sampled(TEN, TEN_MASK)) for o in (Dopd(), Dopd(drop="largest")))
    assert torch.equal(whole.per_token["regime"], dropping.per_token["regime"])
    assert whole.values == dropping.values


def test_random_drops_are_a_function_of_the_batch():
    objective = Dopd(drop="random", drop_fraction=0.5)
    batch = random_batch(objective)
    masks = [objective.decide(batch.scores(objective)).parts["dropped"] for _ in range(2)]
    assert torch.equal(*masks)
    assert masks[0].sum() == 5  # half of 6 + 3 + 1
    assert not (masks[0] & ~batch.mask).any()
    patterns = set()
    for shift in range(8):
        batch.ids = (batch.ids + shift) % 9
        patterns.add(tuple(objective.decide(batch.scores(objective)).parts["dropped"].flatten().tolist()))
    assert len(patterns) > 1


def test_equal_gaps_drop_the_earlier_tokens_and_few_tokens_none():
    equal = {PRIVILEGED_TEACHER: [[0.5] * 5], PRIVILEGED_STUDENT: [[0.5] * 5]}
    for drop in ("smallest", "largest"):
        decision = Dopd(drop=drop).decide(sampled(equal, [[1] * 5]))  # type: ignore[arg-type]
        assert decision.parts["dropped"].tolist() == [[True, False, False, False, False]]
    assert not Dopd(drop="largest").decide(sampled(equal, [[1, 1, 1, 1, 0]])).parts["dropped"].any()


def test_dropping_applies_to_uniform_distillation_too():
    # The token study: vanilla OPD without its smallest gaps. A of FOUR: token 1 has the smallest.
    settings = {"routing": False, "drop": "smallest", "drop_fraction": 0.25}
    assert four(**settings) == {token: TEACHER_HT for token in (0, 2, 3)}


# ---- settings as a YAML file gives them -----------------------------------------------------------------------------


def test_the_settings_of_a_file_arrive():
    settings = {"regimes": {"HT": {"source": "student", "weight": 1}}, "routing": True, "drop": "random"}
    objective = settings_of(Dopd, settings, "objective.settings")
    assert objective == Dopd(regimes={"HT": {"source": "student", "weight": 1}}, drop="random")
    gap = objective.decide(sampled(FOUR, ALL)).per_token["gap"]
    assert gap.mean().item() == pytest.approx((log(9 / 8) + log(8) + log(6)) / 4)


def test_a_wrong_setting_of_a_file_is_named():
    with pytest.raises(ConfigurationError, match=r"objective\.settings.*regimes\.HT.*'teach'"):
        settings_of(Dopd, {"regimes": {"HT": {"teach": "student"}}}, "objective.settings")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"regimes": {"HH": {}}}, "regimes 'HH'"),
        ({"regimes": {"HT": {"sources": "teacher"}}}, r"regimes\.HT: unknown key 'sources'"),
        ({"regimes": {"HT": {"source": "average"}}}, r"regimes\.HT: unknown source"),
        ({"regimes": {"LL": {"divergence": "kl"}}}, r"regimes\.LL: unknown divergence"),
        ({"regimes": {"LL": {"support": "most"}}}, r"regimes\.LL: unknown support"),
        ({"regimes": {"LH": {"weight": -1.0}}}, r"regimes\.LH: weight"),
        ({"regimes": {"LH": {"weight": "much"}}}, r"regimes\.LH: weight"),
        ({"regimes": {"LH": {"enabled": "no"}}}, r"regimes\.LH: enabled"),
        ({"regimes": {"HS": {"support": "sampled"}}, "tail": "renormalize"}, r"regimes\.HS: support"),
        ({"teacher_view": "hints"}, "teacher_view"),
        ({"student_view": "hints"}, "student_view"),
        ({"student_policy": "teacher"}, "student_policy"),
        ({"average_rate": 0.0}, "average_rate"),
        ({"drop": "all"}, "drop"),
        ({"drop_fraction": 1.2}, "drop_fraction"),
        ({"beta_light": -1.0}, "beta_light"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        Dopd(**settings)


@pytest.mark.parametrize("drop", ["none", "random", "largest"])
def test_a_batch_of_masked_tokens_teaches_nothing(drop: str):
    nothing_to_learn(Dopd(drop=drop, top_k=3))  # type: ignore[arg-type]
