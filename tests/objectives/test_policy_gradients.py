"""Objectives whose loss is an advantage: ExOPD, Uni-OPD, EOPD and the fixed negative advantage."""

from math import exp, isnan, log

import numpy as np
import pytest
import torch
from helpers import (
    NAN,
    STUDENT,
    TEACHER,
    check_loss,
    check_policy_gradient,
    entropy,
    likeliest,
    nothing_to_learn,
    random_batch,
    sampled,
    scores_of,
)

from dopd_vl.core import PolicyGradient, Source, Term
from dopd_vl.objectives import Eopd, ExOpd, Negative, Opd, UniOpd
from dopd_vl.objectives.base import Requirements

START = Source("start", "plain")


# ---- ExOPD ----------------------------------------------------------------------------------------------------------


def test_exopd_extrapolates_from_the_reference_past_the_teacher():
    # p = ln .4, q = ln .8, r = ln .2; -(p - r - lam (q - r)) with lam 1.5: -(ln 2 - 1.5 ln 4) = 3 ln 2 - ln 2 = 2 ln 2.
    # Second token: p = ln .4, q = ln .1, r = ln .4: -(0 - 1.5 (-ln 4)) = -3 ln 2. Mean of q - r: (ln 4 - ln 4) / 2 = 0.
    given = {TEACHER: [[0.8, 0.1, 0.9]], STUDENT: [[0.4, 0.4, 0.5]], START: [[0.2, 0.4, 0.1]]}
    decision = ExOpd(lam=1.5).decide(sampled(given, [[1, 1, 0]]))
    (term,) = decision.plan.terms
    assert isinstance(term, PolicyGradient)
    assert term.weight[0].tolist() == pytest.approx([2 * log(2), -3 * log(2), 0.0])
    assert decision.values["exopd/reference_gap"] == pytest.approx(0.0, abs=1e-6)


def test_exopds_loss_is_the_published_formula():
    def naive(here, S, at, y):
        p, q, r = np.log(S[y]), np.log(here[TEACHER][y]), np.log(here[START][y])
        return p - r - 1.25 * (q - r)  # minus the advantage

    check_loss(ExOpd(), naive)
    batch = random_batch(ExOpd())
    decision = ExOpd().decide(batch.scores(ExOpd()))
    check_policy_gradient(ExOpd(), decision.per_token["advantage"], decision, batch)


def test_exopd_without_a_reference_takes_r_as_zero():
    objective = ExOpd(reference="none", lam=2.0)
    assert START not in objective.sources()
    check_loss(objective, lambda here, S, at, y: np.log(S[y]) - 2 * np.log(here[TEACHER][y]))


@pytest.mark.parametrize("reference", ["start", "none"])
def test_exopd_at_lam_1_is_opd_exactly(reference: str):
    exopd, opd = ExOpd(lam=1.0, reference=reference), Opd(form="policy_gradient")  # type: ignore[arg-type]
    batch = random_batch(exopd)
    advantages = [o.decide(batch.scores(o)).plan.terms[0].weight for o in (exopd, opd)]
    assert torch.equal(*advantages)


# ---- Uni-OPD --------------------------------------------------------------------------------------------------------

# One prompt, two rollouts of two tokens, teacher and student by q - p = ln(teacher/student):
#   right: ln 2, -ln 2 -> mean 0;   wrong: ln 2, 0 -> mean ln 2 / 2.   margin = -ln 2 / 2
PAIR = {TEACHER: [[0.8, 0.2], [0.8, 0.4]], STUDENT: [[0.4, 0.4], [0.4, 0.4]]}


def test_uni_opd_moves_right_and_wrong_rollouts_apart_by_the_shortfall():
    # delta .4: shortfall = .4 + ln 2 / 2, half of it = .2 + ln 2 / 4.
    decision = UniOpd().decide(sampled(PAIR, [[1, 1], [1, 1]], group=[7, 7], correct=[1.0, 0.0]))
    half = 0.2 + log(2) / 4
    (term,) = decision.plan.terms
    assert isinstance(term, PolicyGradient)
    assert term.weight[0].tolist() == pytest.approx([log(2) + half, -log(2) + half])
    assert term.weight[1].tolist() == pytest.approx([log(2) - half, -half])
    assert term.weight[0].mean() - term.weight[1].mean() == pytest.approx(0.4)
    assert decision.values == pytest.approx(
        {
            "uni-opd/margin": -log(2) / 2,
            "uni-opd/corrected_groups": 1.0,
            "uni-opd/one_sided_groups": 0.0,
            "uni-opd/dropped_tokens": 0.0,
        }
    )


def test_uni_opd_leaves_a_margin_that_is_wide_enough():
    # The verdicts the other way round: margin = +ln 2 / 2 = .347 >= .3.
    decision = UniOpd(delta=0.3).decide(sampled(PAIR, [[1, 1], [1, 1]], group=[0, 0], correct=[0.0, 1.0]))
    assert decision.plan.terms[0].weight.flatten().tolist() == pytest.approx([log(2), -log(2), log(2), 0.0])
    assert decision.values["uni-opd/corrected_groups"] == 0.0


def test_uni_opds_margin_is_a_mean_over_tokens_not_over_rollouts():
    # Right rollouts: one of a token with A = ln 4, one of two tokens with A = 0 and 0: mean ln 4 / 3, not ln 4 / 2.
    # Wrong: 0. delta 0 leaves it as it is.
    given = {TEACHER: [[0.8, 0.5], [0.4, 0.4], [0.4, 0.4]], STUDENT: [[0.2, 0.5], [0.4, 0.4], [0.4, 0.4]]}
    scores = sampled(given, [[1, 0], [1, 1], [1, 1]], group=[0, 0, 0], correct=[1.0, 1.0, 0.0])
    assert UniOpd(delta=0.0).decide(scores).values["uni-opd/margin"] == pytest.approx(log(4) / 3)


def test_uni_opd_drops_tokens_at_the_gap_and_keeps_them_out_of_the_margin():
    # |q - p|: ln 2, 10.1 (dropped), and for the wrong rollout 0 and 9.9 (kept).
    tiny, small = 0.5 * exp(-10.1), 0.5 * exp(-9.9)
    given = {TEACHER: [[0.8, tiny], [0.4, small]], STUDENT: [[0.4, 0.5], [0.4, 0.5]]}
    decision = UniOpd(delta=0.0).decide(sampled(given, [[1, 1], [1, 1]], group=[0, 0], correct=[1.0, 0.0]))
    assert decision.values["uni-opd/dropped_tokens"] == 0.25
    assert decision.values["uni-opd/margin"] == pytest.approx(log(2) + 9.9 / 2)
    assert decision.plan.terms[0].weight.flatten().tolist() == pytest.approx([log(2), 0.0, 0.0, -9.9])
    assert decision.parts["dropped"].tolist() == [[False, True], [False, False]]


def test_uni_opd_drops_a_token_whose_gap_is_just_the_limit():
    scores = sampled({TEACHER: [[0.5, 0.5]], STUDENT: [[0.5, 0.5]]}, [[1, 1]], correct=[1.0])
    scores.policies[TEACHER].logp.copy_(torch.tensor([[-10.5, -10.25]]))
    scores.policies[STUDENT].logp.copy_(torch.tensor([[-0.5, -0.5]]))
    assert UniOpd().decide(scores).plan.terms[0].weight.tolist() == [[0.0, -9.75]]


# Prompt 0 has rollouts right, right, wrong; prompt 1 two right ones. Every A is ln 2.
UNEVEN = {TEACHER: [[0.8]] * 5, STUDENT: [[0.4]] * 5}


@pytest.mark.parametrize(
    ("balance", "factors"),
    [
        ("batch", [1 / 4, 1 / 4, 1.0, 1 / 4, 1 / 4]),  # four right, one wrong: 4 * 1/4 = 1
        ("group", [1 / 2, 1 / 2, 1.0, 1.0, 1.0]),  # in prompt 0 two right, one wrong; prompt 1 is one-sided
        ("none", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_uni_opd_lets_right_and_wrong_rollouts_count_the_same(balance: str, factors: list[float]):
    scores = sampled(UNEVEN, [[1]] * 5, group=[0, 0, 0, 1, 1], correct=[1.0, 1.0, 0.0, 1.0, 1.0])
    decision = UniOpd(delta=0.0, balance=balance).decide(scores)  # type: ignore[arg-type]
    assert decision.plan.terms[0].weight.flatten().tolist() == pytest.approx([log(2) * f for f in factors])
    assert decision.values["uni-opd/one_sided_groups"] == 0.5


@pytest.mark.parametrize("verdict", [1.0, 0.0, NAN])
def test_uni_opd_is_plain_opd_where_all_rollouts_are_of_one_kind(verdict: float):
    scores = sampled(UNEVEN, [[1]] * 5, group=[0, 0, 0, 1, 1], correct=[verdict] * 5)
    decision = UniOpd().decide(scores)
    assert torch.equal(decision.plan.terms[0].weight, Opd(form="policy_gradient").decide(scores).plan.terms[0].weight)
    assert decision.values["uni-opd/one_sided_groups"] == 1.0
    assert isnan(decision.values["uni-opd/margin"])


def test_uni_opd_takes_a_rollout_without_verdict_as_neither_right_nor_wrong():
    # Prompt of right, no verdict: no margin, no shift. With a wrong third: the shift passes the middle one by.
    given = {TEACHER: [[0.4]] * 3, STUDENT: [[0.4]] * 3}
    decision = UniOpd().decide(sampled(given, [[1]] * 3, group=[0] * 3, correct=[1.0, NAN, 0.0]))
    assert decision.plan.terms[0].weight.flatten().tolist() == pytest.approx([0.2, 0.0, -0.2])


def test_uni_opds_loss_is_the_published_formula():
    verdicts, group = [1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1]  # rollout 3 has no token: prompt 1 has no wrong one
    objective = UniOpd(delta=5.0, drop_gap=3.0)
    batch = random_batch(objective)
    logp = {s: torch.log_softmax(z.detach(), -1).numpy() for s, z in batch.logits.items()}
    lengths = [6, 3, 1]
    A = [
        [float(logp[TEACHER][b, n, batch.ids[b, n]] - logp[STUDENT][b, n, batch.ids[b, n]]) for n in range(length)]
        for b, length in enumerate(lengths)
    ]
    assert any(abs(a) >= 3.0 for row in A for a in row)
    kept = [[a for a in row if abs(a) < 3.0] for row in A]
    shortfall = max(5.0 - (np.mean(kept[0]) - np.mean(kept[1])), 0.0)
    assert shortfall > 0
    rights = 1 + bool(kept[2])  # rollouts 0 and 2 against rollout 1

    def naive(here, S, at, y):
        b, n = at
        if abs(A[b][n]) >= 3.0:
            return 0.0
        shift = [shortfall / 2, -shortfall / 2, 0.0][b]
        return -(A[b][n] + shift) * [1 / rights, 1.0, 1 / rights][b]

    check_loss(objective, naive, group=group, correct=verdicts)


def test_uni_opd_needs_siblings_and_a_verifier():
    needs = Requirements.of(UniOpd())
    assert (needs.needs_siblings, needs.needs_verifier) == (2, True)
    with pytest.raises(ValueError, match="verdict"):
        UniOpd().decide(sampled(PAIR, [[1, 1], [1, 1]]))


# ---- EOPD -----------------------------------------------------------------------------------------------------------


def test_eopd_adds_the_forward_kl_where_the_teacher_is_unsure():
    # Teacher's entropies: (.5, .25, .25): .5 ln 2 + .5 ln 4 = 1.5 ln 2 = 1.040 > .8; (.9, .05, .05): .394 < .8.
    # q - p at entry 0: ln(.5/.25) = ln 2 and ln(.9/.45) = ln 2.
    logits = {
        TEACHER: torch.tensor([[[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]]]).log(),
        STUDENT: torch.tensor([[[0.25, 0.5, 0.25], [0.45, 0.45, 0.1], [0.2, 0.4, 0.4]]]).log(),
    }
    mask = torch.tensor([[1, 1, 0]]).bool()
    decision = Eopd(alpha=0.5).decide(scores_of(logits, torch.zeros(1, 3).long(), mask))
    gradient, forward = decision.plan.terms
    assert isinstance(gradient, PolicyGradient)
    assert isinstance(forward, Term)
    assert gradient.weight[0].tolist() == pytest.approx([log(2), log(2), 0.0])
    assert forward.weight[0].tolist() == pytest.approx([0.5, 0.0, 0.0])
    assert (forward.top_k, forward.top_k_source) == (16, "target")
    assert decision.parts["gated"].tolist() == [[True, False, False]]
    assert decision.values["eopd/gated_share"] == 0.5


def test_eopds_loss_is_the_published_formula():
    def naive(here, S, at, y):
        T = here[TEACHER]
        loss = -np.log(T[y] / S[y])
        if entropy(T) > 1.3:
            chosen = likeliest(T, 3)
            mass = sum(T[v] for v in chosen)
            loss += 0.7 * sum(T[v] / mass * np.log(T[v] / mass / S[v]) for v in chosen)
        return loss

    objective = Eopd(tau=1.3, top_k=3, alpha=0.7)
    batch = random_batch(objective)
    gated = objective.decide(batch.scores(objective)).parts["gated"][batch.mask]
    assert 0 < gated.sum() < len(gated)
    check_loss(objective, naive)


# ---- the fixed negative advantage -----------------------------------------------------------------------------------


def test_negative_pushes_down_what_the_student_found_unlikely():
    # .1 and .19 are below .2, .2 is not; the masked token does not count.
    decision = Negative(penalty=0.5).decide(sampled({STUDENT: [[0.1, 0.25, 0.19, 0.9, 0.01]]}, [[1, 1, 1, 1, 0]]))
    (term,) = decision.plan.terms
    assert isinstance(term, PolicyGradient)
    assert term.weight[0].tolist() == [-0.5, 0.0, -0.5, 0.0, 0.0]
    assert decision.values["negative/unlikely_share"] == 0.5


def test_negative_spares_a_token_that_is_just_as_likely_as_the_limit():
    scores = sampled({STUDENT: [[0.5, 0.5]]}, [[1, 1]])
    scores.policies[STUDENT].logp.copy_(torch.tensor([[0.0, -1.0]]))  # probabilities 1 and 1/e
    assert Negative(below=1.0).decide(scores).plan.terms[0].weight.tolist() == [[0.0, -1.0]]


def test_negatives_loss_is_a_penalty_on_unlikely_tokens():
    objective = Negative(penalty=2.0)
    check_loss(objective, lambda here, S, at, y: 2.0 if S[y] < 0.2 else 0.0)
    batch = random_batch(objective)
    decision = objective.decide(batch.scores(objective))
    check_policy_gradient(objective, decision.plan.terms[0].weight, decision, batch)


def test_negative_leaves_a_sure_student_alone():
    decision = Negative().decide(sampled({STUDENT: [[0.9, 0.8]]}, [[1, 1]]))
    assert decision.plan.terms[0].weight.abs().sum() == 0


# ---- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [ExOpd(), UniOpd(), Eopd(top_k=3), Negative()], ids=lambda o: o.name)
def test_a_batch_of_masked_tokens_teaches_nothing(objective):
    nothing_to_learn(objective, group=[0, 0, 1, 1], correct=[1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (ExOpd, {"lam": -1.0}, "lam"),
        (ExOpd, {"reference": "teacher"}, "reference"),
        (UniOpd, {"delta": NAN}, "delta"),
        (UniOpd, {"drop_gap": 0.0}, "drop_gap"),
        (UniOpd, {"balance": "prompt"}, "balance"),
        (Eopd, {"tau": -0.1}, "tau"),
        (Eopd, {"top_k": 0}, "top_k"),
        (Eopd, {"alpha": -1.0}, "alpha"),
        (Negative, {"penalty": -1.0}, "penalty"),
        (Negative, {"below": 0.0}, "below"),
    ],
)
def test_a_wrong_setting_is_named(cls, settings, named: str):
    with pytest.raises(ValueError, match=named):
        cls(**settings)
