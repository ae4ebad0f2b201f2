"""Plans: terms add up, weights and masks are obeyed, the reductions mean what they say."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from dopd_vl.core import Plan, Regime, Source, Term, execute_plan, item_count, reduce, token_scale
from dopd_vl.objectives.common import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER
from dopd_vl.objectives.dopd import DopdSettings, dopd_plan

TEACHER = Source("teacher", "plain")
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def logits(*rows: list[float]) -> Tensor:
    """Logits `[1, N, V]` of these probabilities."""
    return torch.tensor([rows], dtype=torch.float64).log()


def two_tokens() -> tuple[Tensor, Tensor, Tensor]:
    """S = (3/4, 1/4), T = (1/2, 1/2) at both tokens, and ids. KL(S||T) = .130812, KL(T||S) = .143841."""
    return logits([3 / 4, 1 / 4], [3 / 4, 1 / 4]), logits([1 / 2, 1 / 2], [1 / 2, 1 / 2]), torch.tensor([[0, 1]])


def test_terms_add_up_each_with_its_own_weight():
    S, T, ids = two_tokens()
    plan = Plan(
        (
            Term(TEACHER, "reverse_kl", "full", torch.tensor([[2.0, 0.0]])),
            Term(TEACHER, "forward_kl", "full", torch.tensor([[0.5, -1.0]])),
        )
    )
    loss = execute_plan(plan, S, {TEACHER: T}, ids, torch.ones(1, 2))
    assert loss.tolist() == [pytest.approx([2 * 0.130812 + 0.5 * 0.143841, -0.143841], abs=2e-6)]


def test_each_term_is_held_against_its_own_source():
    S, T, ids = two_tokens()
    other = Source("teacher", "privileged")
    terms = (
        Term(TEACHER, "reverse_kl", "full", torch.tensor([[1.0, 0.0]])),
        Term(other, "reverse_kl", "full", torch.tensor([[0.0, 1.0]])),
    )
    # Against (1/4, 3/4): 3/4 ln 3 - 1/4 ln 3 = 1/2 ln 3
    sources = {TEACHER: T, other: logits([1 / 4, 3 / 4], [1 / 4, 3 / 4])}
    loss = execute_plan(Plan(terms), S, sources, ids, torch.ones(1, 2))
    assert loss.tolist() == [pytest.approx([0.130812, log(3) / 2], abs=1e-6)]
    assert Plan(terms + terms).sources() == [TEACHER, other]
    assert str(other) == "teacher/privileged"


def test_a_source_without_a_weighted_token_is_never_looked_up():
    S, _, ids = two_tokens()
    plan = Plan((Term(TEACHER, "reverse_kl", "full", torch.zeros(1, 2)),))
    assert execute_plan(plan, S, {}, ids, torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


def test_the_sampled_token_is_the_one_that_the_ids_say():
    S, T, ids = two_tokens()
    plan = Plan((Term(TEACHER, "reverse_kl", "sampled", torch.ones(1, 2), tail="drop"),))
    # ids (0, 1): 3/4 ln 3/2, then 1/4 ln 1/2
    loss = execute_plan(plan, S, {TEACHER: T}, ids, torch.ones(1, 2))
    assert loss.tolist() == [pytest.approx([3 / 4 * log(3 / 2), 1 / 4 * log(1 / 2)])]


def test_masked_and_weightless_tokens_take_no_part_and_get_no_gradient():
    S, T, _ = two_tokens()
    S = torch.cat([S, torch.full((1, 1, 2), torch.nan)], dim=1).requires_grad_()
    T = torch.cat([T, torch.full((1, 1, 2), torch.nan)], dim=1).requires_grad_()
    plan = Plan((Term(TEACHER, "reverse_kl", "full", torch.tensor([[1.0, 0.0, 1.0]])),))
    loss = execute_plan(plan, S, {TEACHER: T}, torch.tensor([[0, 1, -100]]), torch.tensor([[1, 1, 0]]))
    loss.sum().backward()
    assert loss.tolist() == [pytest.approx([0.130812, 0, 0], abs=1e-6)]
    assert (S.grad[0, 0] != 0).all()
    assert S.grad[0, 1:].tolist() == [[0, 0], [0, 0]]
    assert T.grad is None


def test_a_loss_without_any_term_can_still_be_stepped():
    S = torch.zeros(1, 2, 3, requires_grad=True)
    execute_plan(Plan(()), S, {}, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)).sum().backward()
    assert torch.equal(S.grad, torch.zeros(1, 2, 3))


def test_dopd_plan_is_the_papers_table():
    regime = torch.tensor([[Regime.LH, Regime.LL, Regime.HT, Regime.HS, Regime.MASKED]])
    plan = dopd_plan(regime, DopdSettings(0.6, 0.3, top_k=7, top_k_source="union", tail="drop"))
    table = [
        (PRIVILEGED_TEACHER, "reverse_kl", "top_k", [0.6, 0, 0, 0, 0]),
        (PRIVILEGED_STUDENT, "reverse_kl", "top_k", [0, 0.3, 0, 0, 0]),
        (PRIVILEGED_TEACHER, "js", "full", [0, 0, 1, 0, 0]),
        (PRIVILEGED_STUDENT, "reverse_kl", "top_k", [0, 0, 0, 0.6, 0]),
    ]
    assert [(t.source, t.divergence, t.support, t.weight[0].tolist()) for t in plan.terms] == table
    assert {(t.top_k, t.top_k_source, t.tail) for t in plan.terms if t.support == "top_k"} == {(7, "union", "drop")}
    assert plan.reduction == "sequence"


def test_reductions_by_hand():
    token_loss = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # by sequence: ((1 + 2 + 3)/3 + 10) / 2 = 6; by token: 16 / 4
    assert reduce(token_loss, MASK, "sequence").item() == 6.0
    assert reduce(token_loss, MASK, "token").item() == 4.0
    assert item_count(MASK, "sequence").item() == 2
    assert item_count(MASK, "token").item() == 4
    assert token_scale(MASK, "sequence").tolist() == [pytest.approx([1 / 3] * 3), [1, 0, 0], [0, 0, 0]]
    assert token_scale(MASK, "token").tolist() == MASK.tolist()


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_slices_of_a_batch_add_up_to_its_loss(reduction: str):
    # Gradient accumulation: every slice is summed by token_scale and divided by the whole batch's count.
    token_loss = torch.rand(3, 3, generator=torch.manual_seed(0), dtype=torch.float64) * MASK
    scale, count = token_scale(MASK, reduction, torch.float64), item_count(MASK, reduction)
    total = sum((token_loss[b] * scale[b]).sum() / count for b in range(3))
    assert total.item() == pytest.approx(reduce(token_loss, MASK, reduction).item(), abs=1e-15)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_a_reduction_of_nothing_is_zero(reduction: str):
    for shape in ((2, 3), (0, 3), (2, 0)):
        assert reduce(torch.zeros(shape), torch.zeros(shape), reduction).item() == 0.0


def test_a_mask_of_any_type_counts_tokens_not_values():
    for dtype in (torch.bool, torch.uint8, torch.float16):
        assert token_scale(MASK.to(dtype), "sequence").tolist() == token_scale(MASK, "sequence").tolist()
    assert token_scale(MASK * 2, "token").tolist() == MASK.tolist()


def test_terms_that_cannot_be_are_named():
    term = Term(TEACHER, "reverse_kl", "top_k", torch.ones(1, 1))
    cases = [
        ({"divergence": "kl"}, r"unknown divergence 'kl', expected one of reverse_kl, forward_kl, js"),
        ({"support": "all"}, r"unknown support 'all', expected one of sampled, top_k, full"),
        ({"tail": "keep"}, r"unknown tail 'keep'"),
        ({"top_k_source": "teacher"}, r"unknown top_k_source 'teacher'"),
        ({"top_k": 0}, r"top_k=0 must be at least 1"),
        ({"entry_clip": 0.0}, r"entry_clip=0.0 must be above 0"),
        ({"temperature": 1.1}, r"temperature=1.1 must be above 0, and 1 unless support is \"full\""),
        ({"temperature": 0.0, "support": "full"}, r"temperature=0.0 must be above 0"),
        ({"support": "sampled", "tail": "renormalize"}, r"is zero everywhere: use \"bucket\" or \"drop\""),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            replace(term, **changed)
    with pytest.raises(ValueError, match=r"unknown reduction 'mean', expected sequence or token"):
        reduce(torch.zeros(1, 1), torch.ones(1, 1), "mean")
