"""DOPD-anchored: who teaches which token, how, and that nothing it teaches moves what teaches it."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import check_loss, kl, likeliest, random_batch, sampled, softmax, with_bucket

from dopd_vl.core import Source, Term
from dopd_vl.objectives import DopdAnchored
from dopd_vl.objectives.common import PRIVILEGED_TEACHER

COPY = Source("start", "privileged")
# A: ln(.9/.8) = .118, ln(.6/.1) = 1.792, ln(.02/.001) = 2.996, ln(.8/.1) = 2.079; mean 1.746. Mean of the copy's
# probabilities: (.8 + .6 + .02 + .1) / 4 = .38.
#   token 0: small gap                                           -> teacher
#   token 1: large gap, copy surer (.6 > .1) and sure (>= .38)   -> copy
#   token 2: large gap, copy surer (.02 > .001), not sure        -> teacher: neither believes in this token
#   token 3: large gap, teacher surer                            -> teacher
FOUR = {PRIVILEGED_TEACHER: [[0.9, 0.1, 0.001, 0.8]], COPY: [[0.8, 0.6, 0.02, 0.1]]}


def copys_tokens(**settings: Any) -> list[int]:
    decision = DopdAnchored(trim_fraction=0.0, **settings).decide(sampled(FOUR, [[1, 1, 1, 1]]))
    teacher, copy = decision.plan.terms
    assert isinstance(teacher, Term)
    assert isinstance(copy, Term)
    assert ((teacher.weight > 0) ^ (copy.weight > 0)).all()  # each token has one teacher
    return copy.weight.flatten().nonzero().flatten().tolist()


def test_the_copy_teaches_where_it_is_surer_than_the_teacher_and_sure_of_itself():
    assert copys_tokens() == [1]


def test_without_the_test_of_confidence_it_also_teaches_what_neither_believes_in():
    assert copys_tokens(copy_teaches="surer") == [1, 2]


def test_the_copy_may_be_kept_from_teaching():
    assert copys_tokens(copy_teaches="never") == []


def test_the_copy_is_the_student_before_its_first_step():
    assert DopdAnchored().sources() == (PRIVILEGED_TEACHER, COPY)
    assert DopdAnchored(student_policy="student").sources()[1] == Source("student", "privileged")


def test_masked_tokens_count_in_no_mean_and_are_taught_nothing():
    padded = {source: [[*row[0], 0.5, 0.5]] for source, row in FOUR.items()}
    decision = DopdAnchored(trim_fraction=0.0).decide(sampled(padded, [[1, 1, 1, 1, 0, 0]]))
    assert [term.weight[0, 4:].sum().item() for term in decision.plan.terms] == [0.0, 0.0]
    assert decision.values["gap/student_prob_threshold"] == pytest.approx(0.38)


def test_its_loss_is_the_formula_of_its_page():
    objective = DopdAnchored(top_k=3, trim_fraction=0.0, copy_weight=0.7)
    batch = random_batch(objective, seed=3)
    q = {
        source: np.take_along_axis(softmax(z.detach().numpy()), batch.ids.numpy()[..., None], -1)[..., 0]
        for source, z in batch.logits.items()
    }
    q_T, q_C, mask = q[PRIVILEGED_TEACHER], q[COPY], batch.mask.numpy()
    A = np.abs(np.log(q_T) - np.log(q_C))
    seen = set()

    def token_loss(p: dict[Source, np.ndarray], student: np.ndarray, at: tuple[int, int], y: int) -> float:
        copys = A[at] >= A[mask].mean() and q_C[at] > q_T[at] and q_C[at] >= q_C[mask].mean()
        seen.add(bool(copys))
        if not copys:
            return kl(p[PRIVILEGED_TEACHER], student)
        kept = likeliest(p[COPY], 3)
        return 0.7 * kl(with_bucket(student, kept), with_bucket(p[COPY], kept))

    check_loss(objective, token_loss, seed=3)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"student_policy": "teacher"}, "student_policy"),
        ({"copy_teaches": "always"}, "copy_teaches"),
        ({"divergence": "kl"}, "divergence"),
        ({"copy_weight": -1.0}, "copy_weight"),
        ({"top_k": 0}, "top_k"),
        ({"trim_fraction": 1.0}, "trim_fraction"),
        ({"average_rate": 0.0}, "average_rate"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings: dict, named: str):
    with pytest.raises(ValueError, match=named):
        DopdAnchored(**settings)


def test_a_batch_without_tokens_teaches_nothing():
    decision = DopdAnchored().decide(sampled({PRIVILEGED_TEACHER: [[0.5]], COPY: [[0.5]]}, [[0]]))
    assert all(torch.equal(term.weight, torch.zeros_like(term.weight)) for term in decision.plan.terms)
