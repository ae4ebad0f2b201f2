"""Text problems: answers, hints and the split."""

import re

import pytest

from dopd_vl.nano.text_tasks import TEXT_TASKS, record_and_response, split_of, text_problem
from privileged import VARIANTS

INDEXES = range(150)
MORE = {"add", "plus", "gain", "more", "buys", "finds", "wins", "gets", "sum", "total", "whole"}
LESS = {"minus", "less", "drop", "cut", "loses", "sells", "uses", "gives", "difference", "gap", "rest"}
SIGNS = {**dict.fromkeys(MORE, 1), **dict.fromkeys(LESS, -1)}
ROWS = {
    "reverse flip mirror": lambda row: list(reversed(row)),
    "behead shift start-late": lambda row: row[1:],
    "curtail trim stop-early": lambda row: row[: len(row) - 1],
    "echo repeat extend": lambda row: row + row[-1:],
    "rotate cycle roll": lambda row: row[1:] + row[:1],
}


def answer_of(kind, question):
    """The answer worked out anew from the question's words alone."""
    if kind == "rules":
        row, name = re.fullmatch(r"Start with ([\d ]+), then ([a-z ]+)\. What is left\?", question).groups()
        (operation,) = [ROWS[names] for names in ROWS if name.replace(" ", "-") in names.split()]
        return " ".join(operation(row.split()))
    if kind == "compare":
        found = re.findall(r"\([AB]\) (\w+) of (\d) and (\d)", question)
        first, second = (int(a) + SIGNS[word] * int(b) for word, a, b in found)
        return "A" if first > second else "B" if first < second else "C"
    start, *_ = re.findall(r"\d", question)
    changes = re.findall(r"(\w+) (\d)", question)[1:]
    return str(int(start) + sum(SIGNS[word] * int(number) for word, number in changes))


@pytest.mark.parametrize("kind", TEXT_TASKS)
def test_answers_agree_with_an_independent_reading_of_the_question(kind):
    for index in INDEXES:
        _, problem = text_problem(index, "train", 5, [kind])
        assert problem.answer == answer_of(kind, problem.question), problem.question
        assert problem.response.endswith(f"Answer: {problem.answer}")


def test_unexecuted_hints_hold_no_number_and_no_result():
    for index in INDEXES:
        _, problem = text_problem(index, "train", 0)
        assert not re.search(r"\d|=", " ".join((*problem.hints, problem.hint_summary)))


@pytest.mark.parametrize("kind", ["steps", "story"])
def test_hints_say_plainly_which_way_every_change_goes(kind):
    for index in INDEXES:
        _, problem = text_problem(index, "train", 0, [kind])
        words = [word for word, _ in re.findall(r"(\w+) (\d)", problem.question)[1:]]
        told = [1 if hint.startswith("Add ") else -1 for hint in problem.hints[1:]]
        assert told == [SIGNS[word] for word in words]


def test_train_and_held_out_problems_are_disjoint():
    sides = {
        split: {(kind, problem.facts) for kind, problem in (text_problem(index, split, 0) for index in range(800))}
        for split in ("train", "heldout")
    }
    assert not sides["train"] & sides["heldout"]
    kind, problem = text_problem(0, "heldout", 9)
    assert split_of(kind, problem) == "heldout"


def test_a_record_is_the_same_at_every_call_and_every_text_variant_can_show_it():
    for index in range(12):
        record = record_and_response(index, "train", 0)[0]
        assert record == record_and_response(index, "train", 0)[0]
        for name in ("none", "final_answer", "hints", "hints_executed", "hint_summary", "wrong_hint"):
            assert VARIANTS[name].missing(record) is None
        assert VARIANTS["box_label"].missing(record) is not None


def test_wrong_hints_do_not_end_in_the_answer():
    for index in INDEXES:
        kind, problem = text_problem(index, "train", 0)
        if kind == "rules":
            told, true = problem.wrong_hint.split(" is to ")[1], problem.hint_summary.split(" is to ")[1]
            assert told != true
        else:
            assert problem.wrong_hint.rstrip(".").split()[-1] != problem.answer
