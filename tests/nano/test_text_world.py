"""Text problems: answers, hints and the split."""

import re

import pytest

from dopd_vl.nano.text_tasks import TEXT_TASKS, split_of, text_problem, text_record
from privileged import VARIANTS

INDEXES = range(150)
RULES = {
    "reverse": lambda row: list(reversed(row)),
    "drop the first": lambda row: row[1:],
    "drop the last": lambda row: row[: len(row) - 1],
    "swap the ends": lambda row: row[-1:] + row[1:-1] + row[:1] if len(row) > 1 else row,
    "move the first to the end": lambda row: row[1:] + row[:1],
    "repeat the last": lambda row: row + row[-1:],
}


def answer_of(kind, question):
    """The answer worked out anew from the question's words alone."""
    if kind in ("chain", "compare"):
        statements, asked = question.split(". ", 1)
        rules = dict(statement.split(" = ") for statement in statements.split("; "))

        def value(expression):
            return sum(
                (-1 if sign == "-" else 1) * (int(term) if term.isdigit() else value(rules[term]))
                for sign, term in re.findall(r"([+-]?) ?(\w+)", expression)
            )

        if kind == "chain":
            return str(value(re.fullmatch(r"What is (\w)\?", asked)[1]))
        first, second = (value(side) for side in re.findall(r"\([AB]\) (\w [+-] \w)", asked))
        return "A" if first > second else "B" if first < second else "C"
    if kind == "story":
        asked = re.search(r"does (\w+) have", question)[1]
        events = re.findall(rf"{asked} (has|buys|finds|loses|sells) (\d+)", question)
        return str(sum(-int(n) if verb in ("loses", "sells") else int(n) for verb, n in events))
    meanings = dict(re.findall(r"([A-Z]): ([a-z ]+)\.", question))
    row = re.search(r"Start with ([\d ]+)\.", question)[1].split()
    for letter in re.findall(r"[A-Z]", question.split("Apply")[1]):
        row = RULES[meanings[letter]](row)
    return " ".join(row)


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


def test_the_steps_of_a_chain_lead_from_a_given_quantity_to_the_one_asked_for():
    for index in INDEXES:
        _, problem = text_problem(index, "train", 0, ["chain"])
        start = re.fullmatch(r"Start with (\w), which is given\.", problem.hints[0])[1]
        assert re.search(rf"\b{start} = \d", problem.question)
        reached = start
        for hint in problem.hints[1:]:
            before, after = re.fullmatch(r"Use (\w) to get (\w)\.", hint).groups()
            assert before == reached
            assert re.search(rf"\b{after} = {before} [+-] \d", problem.question)
            reached = after
        assert problem.question.endswith(f"What is {reached}?")


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
        record = text_record(index, "train", 0)
        assert record == text_record(index, "train", 0)
        for name in ("none", "final_answer", "hints", "hints_executed", "hint_summary", "wrong_hint"):
            assert VARIANTS[name].missing(record) is None
        assert VARIANTS["box_label"].missing(record) is not None


def test_wrong_hints_do_not_end_in_the_answer():
    for index in INDEXES:
        kind, problem = text_problem(index, "train", 0)
        if kind != "rules":
            assert problem.wrong_hint.rstrip(".").split()[-1] != problem.answer
