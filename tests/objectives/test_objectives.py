"""Objectives are pure functions from scores to a plan."""

import math

import pytest
import torch

from dopd_vl.core import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER, Regime, Source, TokenScores
from dopd_vl.objectives import OBJECTIVES, Dopd, Opd, Scores


def scores(teacher: list[float], student: list[float], mask: list[int]) -> Scores:
    """One sequence, from the probabilities of its sampled tokens under both privileged policies."""

    def policy(probabilities: list[float]) -> TokenScores:
        logp = torch.tensor([probabilities]).log()
        nothing = torch.zeros_like(logp)
        return TokenScores(logp, nothing, nothing, nothing, nothing[..., None].int(), nothing[..., None], nothing)

    policies = {
        PRIVILEGED_TEACHER: policy(teacher),
        PRIVILEGED_STUDENT: policy(student),
        Source("teacher", "plain"): policy(teacher),
    }
    response_mask = torch.tensor([mask]).bool()
    return Scores(policies, torch.zeros_like(response_mask, dtype=torch.long), response_mask, torch.zeros(1).long())


def test_dopd_gives_each_regime_its_teacher_divergence_and_weight() -> None:
    # A: |ln .9/.8| = 0.118, |ln .2/.2| = 0, |ln .8/.1| = 2.079, |ln .1/.6| = 1.792; mean (untrimmed) 0.997.
    # Means of q_T and q_S: 0.5 and 0.425; their sum 0.925. Token 0: 1.7 >= 0.925, LH. Token 1: 0.4, LL.
    # Tokens 2 and 3 have the high gap: q_T larger, HT; q_S larger, HS. The fifth is masked.
    given = scores([0.9, 0.2, 0.8, 0.1, 0.5], [0.8, 0.2, 0.1, 0.6, 0.5], [1, 1, 1, 1, 0])
    decision = Dopd(trim_fraction=0.0, top_k=7, beta_light=0.6, beta_weak=0.3).decide(given)
    assert decision.per_token["regime"].tolist() == [[Regime.LH, Regime.LL, Regime.HT, Regime.HS, Regime.MASKED]]
    taught = {}
    for term in decision.plan.terms:
        for token in term.weight[0].nonzero().flatten().tolist():
            taught[token] = (
                str(term.source),
                term.divergence,
                term.support,
                pytest.approx(term.weight[0, token].item()),
            )
    assert taught == {
        0: ("teacher/privileged", "reverse_kl", "top_k", 0.6),
        1: ("student/privileged", "reverse_kl", "top_k", 0.3),
        2: ("teacher/privileged", "js", "full", 1.0),
        3: ("student/privileged", "reverse_kl", "top_k", 0.6),
    }
    assert decision.values["gap/mean"] == pytest.approx((math.log(9 / 8) + 0 + math.log(8) + math.log(6)) / 4, rel=1e-5)


@pytest.mark.parametrize("view", ["plain", "privileged"])
def test_opd_teaches_every_response_token_alike_from_the_teacher_alone(view: str) -> None:
    objective = Opd(teacher_view=view, divergence="js", support="top_k", top_k=5)  # type: ignore[arg-type]
    assert objective.sources() == (Source("teacher", view),)
    (term,) = objective.decide(scores([0.9, 0.2, 0.8], [0.8, 0.2, 0.1], [1, 1, 0])).plan.terms
    assert term.weight.tolist() == [[1.0, 1.0, 0.0]]
    assert (term.divergence, term.support, term.top_k) == ("js", "top_k", 5)


def test_a_batch_without_tokens_is_decided_without_nan() -> None:
    decision = Dopd().decide(scores([0.5], [0.5], [0]))
    assert all(math.isfinite(value) for value in decision.values.values())
    assert all(term.weight.sum() == 0 for term in decision.plan.terms)


def test_the_table_of_objectives_names_each_by_its_name() -> None:
    assert {name: cls.name for name, cls in OBJECTIVES.items()} == {name: name for name in OBJECTIVES}
