"""Objectives in which the student teaches itself: SDFT, OPSD, SDPO, Vision-OPD, and the control without a reference."""

import pytest
import torch
from helpers import check_loss, js, kl, likeliest, nothing_to_learn, random_batch, sampled, with_bucket

from dopd_vl.core import Source, Term, execute_plan
from dopd_vl.objectives import Opsd, Sdft, Sdpo, SelfPlain, VisionOpd
from dopd_vl.objectives.base import Requirements

DEMONSTRATED = Source("average", "privileged")
SIBLING = Source("average", "sibling")
CROP = Source("average", "evidence_crop")


def test_sdft_is_the_full_reverse_kl_to_the_average_that_was_shown():
    check_loss(Sdft(), lambda here, S, at, y: kl(S, here[DEMONSTRATED]))


def test_sdft_of_the_published_code_is_the_forward_kl():
    check_loss(Sdft(divergence="forward_kl"), lambda here, S, at, y: kl(here[DEMONSTRATED], S))


@pytest.mark.parametrize("policy", ["start", "student", "average"])
def test_opsd_is_the_full_js_to_itself_with_the_solution(policy: str):
    teacher = Source(policy, "privileged")
    check_loss(Opsd(teacher_policy=policy), lambda here, S, at, y: js(S, here[teacher]))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["average", "start"])
def test_the_self_teacher_without_a_reference_sees_x_alone(policy: str):
    teacher = Source(policy, "plain")
    check_loss(SelfPlain(teacher_policy=policy), lambda here, S, at, y: js(S, here[teacher]))  # type: ignore[arg-type]


def test_the_self_teacher_without_a_reference_starts_with_nothing_to_teach():
    batch = random_batch(SelfPlain())
    batch.logits = {source: batch.student.detach().clone() for source in batch.logits}
    plan = SelfPlain().decide(batch.scores(SelfPlain())).plan
    loss = execute_plan(plan, batch.student, batch.logits, batch.ids, batch.mask).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(batch.student.grad, torch.zeros_like(batch.student))


def test_sdpo_compares_the_students_likeliest_tokens_and_one_bucket_over_all_tokens_alike():
    # Rollouts 0 and 2 have a right sibling, rollout 1 none: it is masked, and its tokens count in the mean.
    def naive(here, S, at, y):
        chosen = likeliest(S, 3)
        taught = at[0] != 1
        return js(with_bucket(S, chosen), with_bucket(here[SIBLING], chosen)) if taught else 0.0

    check_loss(Sdpo(top_k=3), naive, reduction="token", has_sibling=[True, False, True, True])


def test_sdpo_masks_rollouts_without_a_right_sibling():
    # Three rollouts with tokens, one of them without a sibling: a third. The fourth has no token and does not count.
    mask = [[1, 1], [1, 0], [1, 1], [0, 0]]
    scores = sampled({SIBLING: [[0.5, 0.5]] * 4}, mask, has_sibling=[True, False, True, False])
    decision = Sdpo().decide(scores)
    (term,) = decision.plan.terms
    assert isinstance(term, Term)
    assert term.weight.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert (term.divergence, term.top_k, term.top_k_source, term.tail) == ("js", 100, "student", "bucket")
    assert decision.plan.reduction == "token"
    assert decision.parts["masked"].tolist() == [[False, False], [True, False], [False, False], [False, False]]
    assert decision.values["sdpo/masked_rollouts"] == pytest.approx(1 / 3)


def test_sdpo_teaches_nothing_when_no_rollout_has_a_right_sibling():
    decision = Sdpo().decide(sampled({SIBLING: [[0.5], [0.5]]}, [[1], [1]], has_sibling=[False, False]))
    assert decision.plan.terms[0].weight.abs().sum() == 0
    assert decision.values["sdpo/masked_rollouts"] == 1.0


def test_sdpo_says_that_it_needs_siblings():
    with pytest.raises(ValueError, match="sibling"):
        Sdpo().decide(sampled({SIBLING: [[0.5]]}, [[1]]))


def test_vision_opd_has_sdpos_loss_against_a_look_at_the_evidence():
    def naive(here, S, at, y):
        chosen = likeliest(S, 3)
        return js(with_bucket(S, chosen), with_bucket(here[CROP], chosen))

    check_loss(VisionOpd(top_k=3), naive, reduction="token")
    (term,) = VisionOpd().decide(sampled({CROP: [[0.5, 0.5]]}, [[1, 0]])).plan.terms
    assert isinstance(term, Term)
    assert (term.top_k, term.top_k_source, term.tail) == (100, "student", "bucket")


def test_each_says_what_it_needs():
    rates = {o.name: Requirements.of(o).average_rate for o in (Sdft(), Opsd(), Sdpo(), VisionOpd())}
    assert rates == {"sdft": 0.01, "opsd": 0.001, "sdpo": 0.05, "vision-opd": 0.05}
    assert (Requirements.of(Sdpo()).needs_siblings, Requirements.of(Sdpo()).needs_verifier) == (2, True)
    assert Requirements.of(VisionOpd()).needs_images
    assert not Requirements.of(Sdft()).needs_images


@pytest.mark.parametrize("objective", [Sdft(), Opsd(), Sdpo(top_k=3), VisionOpd(top_k=3), SelfPlain()], ids=str)
def test_a_batch_of_masked_tokens_teaches_nothing(objective):
    nothing_to_learn(objective, has_sibling=[True, True, False, False])


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (Sdft, {"divergence": "js"}, "divergence"),
        (Sdft, {"average_rate": 0.0}, "average_rate"),
        (Opsd, {"teacher_policy": "teacher"}, "teacher_policy"),
        (Opsd, {"average_rate": 1.5}, "average_rate"),
        (Sdpo, {"top_k": 0}, "top_k"),
        (Sdpo, {"average_rate": -0.1}, "average_rate"),
        (VisionOpd, {"top_k": 0}, "top_k"),
        (VisionOpd, {"average_rate": 2.0}, "average_rate"),
        (SelfPlain, {"teacher_policy": "student"}, "teacher_policy"),
        (SelfPlain, {"average_rate": 0.0}, "average_rate"),
    ],
)
def test_a_wrong_setting_is_named(cls, settings, named: str):
    with pytest.raises(ValueError, match=named):
        cls(**settings)
