"""Objectives are pure functions from scores to a plan."""

import ast
import dataclasses
import inspect
import itertools
import math
import re

import pytest
import torch
from helpers import project, random_batch

from dopd_vl.common.configuration import settings_of
from dopd_vl.core import Regime, Source, TokenScores, execute_plan, fused_plan_loss, reduce
from dopd_vl.objectives import OBJECTIVES, Dopd, Opd, Scores
from dopd_vl.objectives.base import POLICIES
from dopd_vl.objectives.common import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER
from privileged import VARIANTS


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
    assert decision.per_token["gap"][0].tolist() == pytest.approx(
        [math.log(9 / 8), 0, math.log(8), math.log(6), 0], rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize("view", ["plain", "privileged"])
def test_opd_teaches_every_response_token_alike_from_the_teacher_alone(view: str) -> None:
    objective = Opd(teacher_view=view, divergence="js", support="top_k", top_k=5)
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_defaults_that_a_file_can_repeat_and_known_policies(name: str) -> None:
    objective = OBJECTIVES[name]()
    settings = dataclasses.asdict(objective)  # type: ignore[call-overload]
    assert settings_of(OBJECTIVES[name], settings, "objective.settings") == objective
    assert {source.policy for source in objective.sources()} <= set(POLICIES)
    assert {source.view for source in objective.sources()} <= {"plain", "privileged", "sibling", "own", *VARIANTS}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_fused_loss_and_its_gradient_are_those_of_the_whole_logits(name: str) -> None:
    cls = OBJECTIVES[name]
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    objective = cls(**({"top_k": 3} if "top_k" in fields else {}))
    batch = random_batch(objective)
    facts = {"correct": [1.0, 0.0, 1.0, 0.0], "has_sibling": [True, False] * 2, "lesson": [0, 1, 3, 2]}
    given = batch.scores(objective, group=[0, 0, 1, 1], **facts)
    plan = objective.decide(given).plan
    token_loss = execute_plan(plan, batch.student, batch.logits, batch.ids, batch.mask)
    loss = reduce(token_loss, batch.mask, plan.reduction)
    (gradient,) = torch.autograd.grad(loss, batch.student)
    sources = {source: project(logits) for source, logits in batch.logits.items()}
    fused = fused_plan_loss(plan, project(batch.student), sources, batch.ids, batch.mask, given.policies)
    fused.loss.backward()
    assert fused.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(batch.student.grad, gradient)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_field_is_documented_and_every_objective_cites_its_paper(name: str) -> None:
    module = inspect.getmodule(OBJECTIVES[name])
    assert re.search(r"arXiv \d{4}\.\d{5}", module.__doc__ or ""), name
    tree = ast.parse(inspect.getsource(OBJECTIVES[name])).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node, following in itertools.pairwise([*tree.body, None]):
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{name}: {ast.unparse(node.target)} has no doc string"
