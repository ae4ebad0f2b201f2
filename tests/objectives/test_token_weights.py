"""Objectives that choose or weigh tokens and rollouts: TIP and VA-OPD."""

from math import ceil, exp, log

import numpy as np
import pytest
import torch
from helpers import (
    STUDENT,
    TEACHER,
    check_loss,
    entropy,
    kl,
    nothing_to_learn,
    random_batch,
    sampled,
    scores_of,
    softmax,
)

from dopd_vl.core import Source, Term
from dopd_vl.objectives import Tip, VaOpd
from dopd_vl.objectives.base import Pair, Requirements, Scores
from dopd_vl.objectives.tip import DISAGREEMENT

DEGRADED = Source("teacher", "degraded")


# ---- TIP ------------------------------------------------------------------------------------------------------------


def tip_scores(entropies: list[list[float]], divergences: list[list[float]], mask: list[list[int]]) -> Scores:
    """Scores with the given entropies of the student and divergences; nothing else of them matters to TIP."""
    response_mask = torch.tensor(mask).bool()
    logits = torch.zeros(*response_mask.shape, 2)
    given = {STUDENT: logits, TEACHER: logits}
    scores = scores_of(given, torch.zeros(response_mask.shape).long(), response_mask, pairs=Tip.pairs)
    scores.policies[STUDENT].entropy.copy_(torch.tensor(entropies))
    scores.pairs[DISAGREEMENT].copy_(torch.tensor(divergences))
    return scores


def test_tip_keeps_the_half_with_the_highest_score():
    # h = 0, 1, .5, 0 and d = .8, 0, .4, 1 after min-max of entropies 1, 3, 2, 1 and divergences 4, 0, 2, 5:
    # scores 0 + .8 - 0 = .8;  1 + 0 - 0 = 1;  .5 + .4 - .2 = .7;  0 + 1 - 0 = 1. Tokens 1 and 3 are kept.
    objective = Tip(entropy_percentile=100.0)
    decision = objective.decide(tip_scores([[1.0, 3.0, 2.0, 1.0]], [[4.0, 0.0, 2.0, 5.0]], [[1, 1, 1, 1]]))
    assert decision.per_token["importance"][0].tolist() == pytest.approx([0.8, 1.0, 0.7, 1.0])
    assert decision.parts["kept"].tolist() == [[False, True, False, True]]
    (term,) = decision.plan.terms
    assert isinstance(term, Term)
    assert term.weight.tolist() == [[0.0, 1.0, 0.0, 1.0]]
    assert decision.values["tip/kept_share"] == 0.5


def test_tip_cuts_the_entropy_at_its_percentile():
    # Entropies 0, 1, 2, 10: the 50th percentile is 1.5, so they count as 0, 1, 1.5, 1.5: h = 0, 2/3, 1, 1.
    objective = Tip(entropy_percentile=50.0)
    decision = objective.decide(tip_scores([[0.0, 1.0, 2.0, 10.0]], [[3.0, 3.0, 3.0, 3.0]], [[1, 1, 1, 1]]))
    assert decision.per_token["importance"][0].tolist() == pytest.approx([0.0, 2 / 3, 1.0, 1.0])


def test_tip_normalises_within_each_response_and_ignores_what_is_masked():
    # The second response has a hundredth of the first's values and the same order; its fourth token is masked.
    entropies = [[1.0, 3.0, 2.0, 1.0], [0.01, 0.03, 0.02, 9.0]]
    divergences = [[4.0, 0.0, 2.0, 5.0], [0.04, 0.0, 0.05, 9.0]]
    decision = Tip(entropy_percentile=100.0).decide(tip_scores(entropies, divergences, [[1, 1, 1, 1], [1, 1, 1, 0]]))
    # Second: h = 0, 1, .5; d = .8, 0, 1: scores .8, 1, .5 + 1 - .5 = 1. Half of three, rounded up, is two.
    assert decision.parts["kept"].tolist() == [[False, True, False, True], [False, True, True, False]]
    assert decision.values["tip/kept_share"] == pytest.approx(4 / 7)


def test_tip_takes_equal_values_as_zero_and_the_earlier_of_equal_scores():
    decision = Tip().decide(tip_scores([[2.0] * 4], [[1.0] * 4], [[1, 1, 1, 1]]))
    assert decision.per_token["importance"].tolist() == [[0.0] * 4]
    assert decision.parts["kept"].tolist() == [[True, True, False, False]]


def test_tip_keeps_the_one_token_of_a_response():
    decision = Tip(keep=0.1).decide(tip_scores([[2.0, 0.0]], [[1.0, 0.0]], [[1, 0]]))
    assert decision.parts["kept"].tolist() == [[True, False]]


@pytest.mark.parametrize("seed", [0, 1])
def test_tips_loss_is_the_published_formula(seed: int):
    objective = Tip()
    batch = random_batch(objective, seed)
    S, T = (softmax(batch.logits[source].detach().numpy()) for source in (STUDENT, TEACHER))
    kept = set()
    for b, length in enumerate([6, 3, 1]):
        H = [entropy(S[b, n]) for n in range(length)]
        D = [kl(S[b, n], T[b, n]) for n in range(length)]
        H = [min(x, np.percentile(H, 98)) for x in H]
        h, d = ([(x - min(X)) / (max(X) - min(X)) if max(X) > min(X) else 0.0 for x in X] for X in (H, D))
        score = [a + c - a * c for a, c in zip(h, d, strict=True)]
        kept |= {(b, n) for n in sorted(range(length), key=lambda n: -score[n])[: ceil(length / 2)]}

    check_loss(objective, lambda here, S, at, y: kl(S, here[TEACHER]) if at in kept else 0.0, seed=seed)


def test_tip_asks_for_the_divergence_of_the_student_from_the_teacher():
    assert Requirements.of(Tip()).pairs == (Pair("reverse_kl", STUDENT, TEACHER),)
    assert set(Tip().sources()) == {STUDENT, TEACHER}


# ---- VA-OPD ---------------------------------------------------------------------------------------------------------


def test_va_opd_gives_half_of_the_weight_to_the_tokens_that_need_the_image():
    # a = ln 4, 0 (ln 1/2 is clamped), ln 2, 0, 0 of five tokens: the top fifth is the first. It weighs 5/2, each of
    # the other four 5/8: half and half of 5. The only rollout of its prompt weighs 1. Mean a = 3 ln 2 / 5.
    given = {TEACHER: [[0.8, 0.2, 0.6, 0.3, 0.3]], DEGRADED: [[0.2, 0.4, 0.3, 0.3, 0.3]]}
    decision = VaOpd().decide(sampled(given, [[1, 1, 1, 1, 1]]))
    (term,) = decision.plan.terms
    assert isinstance(term, Term)
    assert (str(term.source), term.divergence, term.support) == ("teacher/plain", "reverse_kl", "full")
    assert term.weight[0].tolist() == pytest.approx([2.5, 0.625, 0.625, 0.625, 0.625])
    assert decision.parts["visual"].tolist() == [[True, False, False, False, False]]
    assert decision.values["va-opd/visual_advantage"] == pytest.approx(3 * log(2) / 5)


def test_va_opd_weighs_siblings_by_their_visual_advantage():
    # One-token rollouts: a = ln 4 and 0 in prompt 0, z = 1 and -1, softmax e/(e + 1/e) = 1/(1 + e^-2), times 2.
    # Prompt 1 has twice the same a: both weigh 1.
    given = {TEACHER: [[0.8], [0.3], [0.6], [0.6]], DEGRADED: [[0.2], [0.3], [0.3], [0.3]]}
    (term,) = VaOpd().decide(sampled(given, [[1]] * 4, group=[3, 3, 5, 5])).plan.terms
    sure = 2 / (1 + exp(-2))
    assert term.weight.flatten().tolist() == pytest.approx([sure, 2 - sure, 1.0, 1.0])


def test_va_opd_leaves_rollouts_without_a_token_out_of_their_prompt():
    given = {TEACHER: [[0.8], [0.3], [0.9]], DEGRADED: [[0.2], [0.3], [0.1]]}
    (term,) = VaOpd().decide(sampled(given, [[1], [1], [0]], group=[0, 0, 0])).plan.terms
    sure = 2 / (1 + exp(-2))
    assert term.weight.flatten().tolist() == pytest.approx([sure, 2 - sure, 0.0])


@pytest.mark.parametrize("mask", [[1, 0, 0], [1, 1, 1]])
def test_va_opd_weighs_tokens_alike_where_the_image_tells_nothing_apart(mask: list[int]):
    given = {TEACHER: [[0.3, 0.3, 0.3]], DEGRADED: [[0.3, 0.3, 0.3]]}
    decision = VaOpd().decide(sampled(given, [mask]))
    assert decision.plan.terms[0].weight[0].tolist() == [float(m) for m in mask]
    assert not decision.parts["visual"].any()


@pytest.mark.parametrize("top_share", [0.2, 0.5, 1.0])
def test_va_opds_loss_is_the_published_formula(top_share: float):
    objective, group, lengths = VaOpd(top_share=top_share), [0, 0, 0, 0], [6, 3, 1]
    batch = random_batch(objective)
    q, degraded = (softmax(batch.logits[source].detach().numpy()) for source in (TEACHER, DEGRADED))
    a = [
        [max(float(np.log(q[b, n, y]) - np.log(degraded[b, n, y])), 0.0) for n, y in enumerate(batch.ids[b, :length])]
        for b, length in enumerate(lengths)
    ]
    means = np.array([np.mean(row) for row in a])
    z = (means - means.mean()) / means.std()
    rollout = 3 * np.exp(z) / np.exp(z).sum()
    weight = {}
    for b, row in enumerate(a):
        count = ceil(top_share * len(row))
        order = sorted(range(len(row)), key=lambda n: -row[n])
        for place, n in enumerate(order):
            even = count == len(row)
            share = len(row) / (2 * count) if place < count else len(row) / (2 * (len(row) - count))
            weight[b, n] = rollout[b] * (1.0 if even else share)

    check_loss(objective, lambda here, S, at, y: weight[at] * kl(S, here[TEACHER]), group=group)


def test_va_opd_needs_images_and_siblings():
    needs = Requirements.of(VaOpd())
    assert (needs.needs_images, needs.needs_siblings) == (True, 2)


# ---- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Tip(), VaOpd()], ids=lambda o: o.name)
def test_a_batch_of_masked_tokens_teaches_nothing(objective):
    nothing_to_learn(objective)


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (Tip, {"keep": 0.0}, "keep"),
        (Tip, {"keep": 1.5}, "keep"),
        (Tip, {"entropy_percentile": 0.0}, "entropy_percentile"),
        (VaOpd, {"top_share": 0.0}, "top_share"),
    ],
)
def test_a_wrong_setting_is_named(cls, settings, named: str):
    with pytest.raises(ValueError, match=named):
        cls(**settings)
