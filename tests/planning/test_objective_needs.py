"""What objectives need is what they decide on."""

import pytest

from dopd_vl.objectives import OBJECTIVES, Dopd
from dopd_vl.objectives.base import Requirements
from dopd_vl.planning.objective_needs import longest_lesson, needs_of


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_asked(name: str) -> None:
    objective = OBJECTIVES[name]()
    scorings, _ = needs_of(objective, Requirements.of(objective).needs_siblings, 128)
    assert [(s.policy, s.view) for s in scorings] == [(s.policy, s.view) for s in objective.sources()]


def test_the_longest_prompt_that_is_learned_on_is_that_of_any_lesson() -> None:
    # DAPD: x, x with the rollout, x with the solution.
    assert longest_lesson(OBJECTIVES["dapd"](), prompt=100, privileged=150, response=40) == 150
    assert longest_lesson(OBJECTIVES["dapd"](), prompt=100, privileged=110, response=40) == 140
    assert longest_lesson(OBJECTIVES["dopd"](), prompt=100, privileged=150, response=40) == 100


def test_dopd_keeps_hidden_states_of_the_teacher_for_some_tokens() -> None:
    (teacher, student), full = needs_of(Dopd(), 4, 128)
    assert full
    assert (teacher.keeps_hidden, teacher.of_all_tokens) == (True, False)
    assert (student.supervises, student.keeps_hidden) == (True, False)


def test_top_k_everywhere_keeps_no_hidden_states() -> None:
    scorings, full = needs_of(Dopd(regimes={"HT": {"support": "top_k"}}), 4, 128)
    assert not full
    assert not any(scoring.keeps_hidden for scoring in scorings)


def test_vanilla_distillation_over_the_whole_vocabulary_keeps_them_for_all() -> None:
    (teacher,), full = needs_of(OBJECTIVES["opd"](), 1, 128)
    assert full
    assert teacher.of_all_tokens
