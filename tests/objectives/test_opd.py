"""Vanilla distillation, its policy-gradient form, the evidence gate, and distillation of a context."""

from math import log

import numpy as np
import pytest
import torch
from helpers import (
    STUDENT,
    TEACHER,
    check_loss,
    check_policy_gradient,
    js,
    kl,
    likeliest,
    nothing_to_learn,
    random_batch,
    sampled,
    scores_of,
    with_bucket,
)

from dopd_vl.core import PolicyGradient, Source, Term, execute_plan
from dopd_vl.objectives import Opcd, Opd
from dopd_vl.objectives.base import Requirements

PRIVILEGED = Source("teacher", "privileged")
DEGRADED = Source("teacher", "degraded")


def test_opd_is_the_full_reverse_kl_by_default():
    check_loss(Opd(), lambda here, S, at, y: kl(S, here[TEACHER]))


def test_opd_takes_any_divergence_and_support():
    def top_k_js(here, S, at, y):
        chosen = likeliest(here[TEACHER], 3)
        return js(with_bucket(S, chosen), with_bucket(here[TEACHER], chosen))

    def sampled_forward(here, S, at, y):
        return kl(with_bucket(here[TEACHER], [y]), with_bucket(S, [y]))

    check_loss(Opd(divergence="js", support="top_k", top_k=3), top_k_js)
    check_loss(Opd(divergence="forward_kl", support="sampled"), sampled_forward)


@pytest.mark.parametrize("view", ["privileged", "wrong_hint"])
def test_opd_sees_through_the_teacher_in_any_view(view: str):
    teacher = Source("teacher", view)
    assert Opd(teacher_view=view).sources() == (teacher,)
    check_loss(Opd(teacher_view=view), lambda here, S, at, y: kl(S, here[teacher]))


def test_the_policy_gradient_form_has_q_minus_p_as_advantage():
    # q - p: ln(.8/.4) = ln 2, ln(.1/.4) = -ln 4; the third token is masked. Mean: (ln 2 - ln 4) / 2 = -ln 2 / 2.
    objective = Opd(form="policy_gradient")
    decision = objective.decide(sampled({TEACHER: [[0.8, 0.1, 0.9]], STUDENT: [[0.4, 0.4, 0.5]]}, [[1, 1, 0]]))
    (term,) = decision.plan.terms
    assert isinstance(term, PolicyGradient)
    assert term.weight[0].tolist() == pytest.approx([log(2), -log(4), 0.0])
    assert decision.values["opd/mean_gap"] == pytest.approx(-log(2) / 2)
    check_loss(objective, lambda here, S, at, y: -np.log(here[TEACHER][y] / S[y]))
    batch = random_batch(objective)
    decision = objective.decide(batch.scores(objective))
    check_policy_gradient(objective, decision.per_token["advantage"], decision, batch)


def test_the_policy_gradient_forms_expected_gradient_is_the_reverse_kls():
    # Exactly: sum over the vocabulary of S(y) times the gradient of sampling y.
    objective, divergence = Opd(form="policy_gradient"), Opd()
    batch = random_batch(objective, vocabulary=4)
    S = torch.softmax(batch.student.detach(), -1)
    expected = torch.zeros_like(batch.student)
    for y in range(4):
        batch.ids = torch.full_like(batch.ids, y)
        advantage = objective.decide(batch.scores(objective)).plan.terms[0].weight
        chosen = torch.eye(4, dtype=S.dtype)[y]
        expected += S[..., y : y + 1] * -advantage[..., None] * (chosen - S)
    plain = divergence.decide(batch.scores(divergence)).plan
    execute_plan(plain, batch.student, batch.logits, batch.ids, batch.mask).sum().backward()
    torch.testing.assert_close(batch.student.grad, expected * batch.mask[..., None])


def test_an_impossible_token_has_a_finite_advantage():
    scores = sampled({TEACHER: [[0.5]], STUDENT: [[0.5]]}, [[1]])
    scores.policies[TEACHER].logp.fill_(-torch.inf)
    (term,) = Opd(form="policy_gradient").decide(scores).plan.terms
    assert term.weight.item() == pytest.approx(-100 + log(2))


def test_the_gate_weighs_tokens_by_what_the_evidence_is_worth():
    # q(with) - q(without): ln 4, ln(1/2) -> 0, ln 2, and a masked token. Sum of the clamped: 3 ln 2, three tokens:
    # mean ln 2, so the weights are 2, 0, 1. Unclamped mean: (ln 4 - ln 2 + ln 2) / 3 = 2 ln 2 / 3.
    objective = Opd(evidence_gate="degraded")
    assert objective.sources() == (TEACHER, DEGRADED)
    assert Requirements.of(objective).needs_images
    assert not Requirements.of(Opd()).needs_images
    given = {TEACHER: [[0.8, 0.2, 0.6, 0.9]], DEGRADED: [[0.2, 0.4, 0.3, 0.1]]}
    decision = objective.decide(sampled(given, [[1, 1, 1, 0]]))
    (term,) = decision.plan.terms
    assert term.weight[0].tolist() == pytest.approx([2.0, 0.0, 1.0, 0.0])
    assert decision.values["opd/evidence_gain"] == pytest.approx(2 * log(2) / 3)
    assert decision.values["opd/evidence_share"] == pytest.approx(2 / 3)


def test_the_gate_limits_what_one_token_counts_for():
    # ln(.9/.0009) = ln 1000 is cut to ln 4; the other token has ln 2: mean 1.5 ln 2, weights 4/3 and 2/3.
    objective = Opd(evidence_gate="plain", teacher_view="privileged", evidence_limit=log(4))
    scores = sampled({PRIVILEGED: [[0.9, 0.8]], TEACHER: [[0.0009, 0.4]]}, [[1, 1]])
    assert objective.decide(scores).plan.terms[0].weight[0].tolist() == pytest.approx([4 / 3, 2 / 3])


def test_evidence_that_helps_nowhere_weighs_nothing():
    objective = Opd(evidence_gate="degraded")
    (term,) = objective.decide(sampled({TEACHER: [[0.3, 0.2]], DEGRADED: [[0.4, 0.2]]}, [[1, 1]])).plan.terms
    assert term.weight.tolist() == [[0.0, 0.0]]


def test_the_gate_weighs_the_policy_gradient_too():
    # Advantages ln 2 and -ln 4; evidence ln 8 and ln 2, of mean ln 4: weights 3/2 and 1/2.
    given = {TEACHER: [[0.8, 0.1]], STUDENT: [[0.4, 0.4]], DEGRADED: [[0.1, 0.05]]}
    decision = Opd(form="policy_gradient", evidence_gate="degraded").decide(sampled(given, [[1, 1]]))
    assert decision.plan.terms[0].weight[0].tolist() == pytest.approx([1.5 * log(2), -0.5 * log(4)])


def test_opcd_sums_over_the_students_likeliest_tokens_and_drops_the_rest():
    def naive(here, S, at, y):
        return sum(S[v] * np.log(S[v] / here[PRIVILEGED][v]) for v in likeliest(S, 3))

    check_loss(Opcd(top_k=3), naive)


def test_opcd_compares_256_tokens_with_the_teacher_or_the_students_start():
    mask = [[1, 0]]
    (term,) = Opcd().decide(sampled({PRIVILEGED: [[0.5, 0.5]]}, mask)).plan.terms
    assert isinstance(term, Term)
    assert (term.top_k, term.top_k_source, term.tail, term.weight.tolist()) == (256, "student", "drop", [[1.0, 0.0]])
    assert Opcd(teacher_policy="start").sources() == (Source("start", "privileged"),)


def test_opcds_sum_falls_below_zero_for_a_flat_student():
    # The trap: S flat over 4, its top 1 has 1/4; T gives that entry .9. The sum is 1/4 ln(.25/.9) = -.32.
    objective = Opcd(top_k=1)
    logits = {PRIVILEGED: torch.tensor([[[0.9, 0.05, 0.03, 0.02]]]).log()}
    student = torch.tensor([[[1e-4, 0.0, 0.0, 0.0]]], requires_grad=True)
    mask = torch.ones(1, 1).bool()
    plan = objective.decide(scores_of(logits, torch.zeros(1, 1).long(), mask)).plan
    loss = execute_plan(plan, student, logits, torch.zeros(1, 1).long(), mask)
    assert loss.item() == pytest.approx(0.25 * log(0.25 / 0.9), abs=1e-3)


@pytest.mark.parametrize(
    "objective", [Opd(), Opd(form="policy_gradient"), Opd(evidence_gate="degraded"), Opcd(top_k=3)], ids=str
)
def test_a_batch_of_masked_tokens_teaches_nothing(objective):
    nothing_to_learn(objective)


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (Opd, {"form": "sampled"}, "form"),
        (Opd, {"teacher_view": ""}, "teacher_view"),
        (Opd, {"divergence": "kl"}, "divergence"),
        (Opd, {"support": "most"}, "support"),
        (Opd, {"support": "top_k", "top_k": 0}, "top_k"),
        (Opd, {"top_k_source": "both"}, "top_k_source"),
        (Opd, {"tail": "cut"}, "tail"),
        (Opd, {"evidence_gate": "plain"}, "evidence_gate"),
        (Opd, {"evidence_limit": 0.0}, "evidence_limit"),
        (Opcd, {"teacher_policy": "average"}, "teacher_policy"),
        (Opcd, {"top_k": 0}, "top_k"),
    ],
)
def test_a_wrong_setting_is_named(cls, settings, named: str):
    with pytest.raises(ValueError, match=named):
        cls(**settings)
