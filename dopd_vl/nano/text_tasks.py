"""Questions in words and symbols whose difficulty is knowing the order of the steps: a step-wise hint really helps.

Train and held-out problems are disjoint by construction: a hash of a problem's facts decides its split, whatever its
phrasing or the order of its statements.
"""

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from dopd_vl.nano.digits import SPLITS, Split
from dopd_vl.nano.problems import Problem, choose_kinds, comparison, other_number

NAMES = ("Mia", "Tom", "Ann", "Ben", "Eva", "Leo", "Zoe", "Sam")
THINGS = ("pens", "apples", "stamps", "coins", "shells", "books")
HELDOUT_SHARE = 5  # one problem in five is held out


def text_problem(index: int, split: Split, seed: int, kinds: Sequence[str] | None = None) -> tuple[str, Problem]:
    """Problem `index` of a split, the same at every call: (kind, problem)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    chosen = choose_kinds(kinds, TEXT_TASKS, "text")
    kind = chosen[index % len(chosen)]
    rng = random.Random(f"text/{split}/{seed}/{kind}/{index}")
    while True:
        problem = TEXT_TASKS[kind](rng)
        if split_of(kind, problem) == split:
            return kind, problem


def split_of(kind: str, problem: Problem) -> Split:
    """The split that a problem's facts belong to."""
    digest = hashlib.sha256(repr((kind, problem.facts)).encode()).digest()
    return "heldout" if digest[0] % HELDOUT_SHARE == 0 else "train"


def text_record(index: int, split: Split, seed: int, kinds: Sequence[str] | None = None) -> dict[str, Any]:
    """The raw record of a privileged data set (see docs/data.md), without images or boxes."""
    return record_and_response(index, split, seed, kinds)[0]


def record_and_response(
    index: int, split: Split, seed: int, kinds: Sequence[str] | None = None
) -> tuple[dict[str, Any], str]:
    """A raw record and the reference response, which no privileged data set carries: students make their own."""
    kind, problem = text_problem(index, split, seed, kinds)
    record = {
        "id": f"nano-text-{split}-{seed}-{index:06d}-{kind}",
        "prompt": [{"role": "user", "content": problem.question}],
        "images": [],
        "answer": problem.answer,
        "task": problem.task,
        "source": f"nano-text/{kind}",
        "privileged": {
            "final_answer": problem.answer,
            "hints": list(problem.hints),
            "hints_executed": list(problem.hints_executed),
            "hint_summary": problem.hint_summary,
            "caption": None,
            "boxes": [],
            "wrong_hint": problem.wrong_hint,
            "provenance": "procedural",
        },
    }
    return record, problem.response


def chain(rng: random.Random) -> Problem:
    """Variables defined by one another in shuffled order, with others that lead nowhere."""
    length, aside = rng.randint(2, 4), rng.randint(1, 3)
    letters = rng.sample(string.ascii_lowercase, length + aside)
    path, others = letters[:length], letters[length:]
    values = {path[0]: rng.randint(1, 9)}
    equations = {path[0]: str(values[path[0]])}
    steps, executed = [], [f"{path[0]} is {values[path[0]]}."]
    for before, name in pairwise(path):
        equations[name], values[name], step = _derive(before, values[before], rng)
        steps.append(f"{name}={step}={values[name]}.")
        executed.append(f"{name}={step}={values[name]}.")
    for name in others:  # half of them hang off the chain, so that the first match is not always the right one
        before = rng.choice(list(values))
        given = rng.random() < 0.5
        equations[name], values[name] = (
            (str(n := rng.randint(1, 9)), n) if given else _derive(before, values[before], rng)[:2]
        )
    answer = values[path[-1]]
    statements = [f"{name} = {equation}" for name, equation in equations.items()]
    rng.shuffle(statements)
    hints = [f"Start with {path[0]}, which is given."]
    hints += [f"Use {before} to get {name}." for before, name in pairwise(path)]
    # Worked backwards first, from what is asked to what is given: the part that a hint makes easy.
    search = [f"{name} needs {before}." for before, name in reversed(list(pairwise(path)))]
    wrong = rng.sample(letters, length)
    return Problem(
        question=f"{'; '.join(statements)}. What is {path[-1]}?",
        answer=str(answer),
        task="number",
        reasoning=" ".join([*search, f"{path[0]}={values[path[0]]}.", *steps]),
        hints=tuple(hints),
        hints_executed=tuple(executed),
        hint_summary=f"Go through {', then '.join(path)}.",
        wrong_hint=f"Go through {', then '.join(wrong)}; it gives {other_number(answer, rng)}.",
        facts=(path[-1], tuple(sorted(equations.items()))),
    )


def story(rng: random.Random) -> Problem:
    """Two people's belongings change in turn; one of them is asked for."""
    (asked, other), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    has = {asked: rng.randint(3, 9), other: rng.randint(3, 9)}
    total = has[asked]
    sentences = [f"{name} has {number} {thing}." for name, number in has.items()]
    rng.shuffle(sentences)
    hints, sums, executed = [f"Start with what {asked} has."], [], [f"{asked} has {total}."]
    start, changes = tuple(has.values()), []
    events = ["own"] * rng.randint(1, 3) + ["other"] * rng.randint(1, 2)
    rng.shuffle(events)
    for event in events:
        person = asked if event == "own" else other
        number = rng.randint(1, min(9, has[person])) if has[person] else 0
        losing = number > 0 and rng.random() < 0.5
        number = number or rng.randint(1, 9)
        verb = rng.choice(("loses", "sells")) if losing else rng.choice(("buys", "finds"))
        sentences.append(f"{person} {verb} {number}.")
        has[person] += -number if losing else number
        changes.append((event, -number if losing else number))
        if event == "own":
            step = f"{total}{'-' if losing else '+'}{number}={has[person]}"
            sums.append(f"{verb} {number}: {step}.")
            executed.append(f"{asked} {verb} {number}: {step}.")
            hints.append(f"{'Take away' if losing else 'Add'} what {asked} {verb}.")
            total = has[person]
    return Problem(
        question=f"{' '.join(sentences)} How many {thing} does {asked} have now?",
        answer=str(total),
        task="number",
        reasoning=f"{asked} has {executed[0].split()[-1]} {' '.join(sums)}",
        hints=tuple(hints),
        hints_executed=tuple(executed),
        hint_summary=f"Follow only {asked}; leave {other} out.",
        wrong_hint=f"Follow only {other}; the result is {other_number(total, rng)}.",
        facts=(*start, *changes),
    )


def rules(rng: random.Random) -> Problem:
    """Operations on a row of digits, named by letters whose meanings stand in another order."""
    digits = [rng.randint(0, 9) for _ in range(rng.randint(3, 4))]
    listed = rng.sample(list(OPERATIONS), rng.randint(3, 4))
    letters = rng.sample(string.ascii_uppercase, len(listed))
    applied = rng.sample(range(len(listed)), 2)
    state, states = digits, []
    for place in applied:
        state = OPERATIONS[listed[place]](state)
        states.append(state)
    meanings = " ".join(f"{letter}: {meaning}." for letter, meaning in zip(letters, listed, strict=True))
    order = [letters[place] for place in applied]
    wrong = rng.choice([meaning for place, meaning in enumerate(listed) if place not in applied])
    shown = [
        f"{letter}, {listed[place]}: {_row(state)}."
        for letter, place, state in zip(order, applied, states, strict=True)
    ]
    return Problem(
        question=f"{meanings} Start with {_row(digits)}. Apply {' then '.join(order)}.",
        answer=_row(state),
        task="exact",
        reasoning=" ".join(shown),
        hints=tuple(f"{letters[place]} means {listed[place]}." for place in applied),
        hints_executed=tuple(f"{listed[place]}: {_row(state)}." for place, state in zip(applied, states, strict=True)),
        hint_summary=f"First {listed[applied[0]]}, then {listed[applied[1]]}.",
        wrong_hint=f"First {wrong}, then {listed[applied[0]]}.",
        facts=(tuple(digits), tuple(listed[place] for place in applied), tuple(order)),
    )


def compare(rng: random.Random) -> Problem:
    """Two sums or differences of given quantities; which is larger."""
    names = rng.sample(string.ascii_lowercase, rng.randint(4, 6))
    values = {name: rng.randint(1, 9) for name in names}
    sides, results, worked, hints = [], [], [], []
    for first, second in (names[0:2], names[2:4]):
        sign = "+" if values[first] < values[second] or rng.random() < 0.5 else "-"
        results.append(values[first] + values[second] if sign == "+" else values[first] - values[second])
        sides.append(f"{first} {sign} {second}")
        worked.append(f"{values[first]}{sign}{values[second]}={results[-1]}")
        hints.append(f"Look up {first} and {second} and {'add' if sign == '+' else 'subtract'}.")
    relation, letter = comparison(*results)
    given = list(values.items())
    rng.shuffle(given)
    return Problem(
        question=f"{'; '.join(f'{name} = {value}' for name, value in given)}. "
        f"Which is larger? (A) {sides[0]} (B) {sides[1]} (C) equal",
        answer=letter,
        task="choice",
        reasoning=f"A: {worked[0]}. B: {worked[1]}. {relation}.",
        hints=(*hints, "Compare the two results."),
        hints_executed=(f"{sides[0]}: {worked[0]}.", f"{sides[1]}: {worked[1]}.", f"Compare: {relation}, so {letter}."),
        hint_summary=f"Work out {sides[0]} and {sides[1]}, then compare.",
        wrong_hint=f"The right option is {rng.choice([other for other in 'ABC' if other != letter])}.",
        facts=(tuple(sides), tuple(sorted(values.items()))),
    )


TEXT_TASKS: dict[str, Callable[[random.Random], Problem]] = {
    "chain": chain,
    "story": story,
    "rules": rules,
    "compare": compare,
}

OPERATIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "reverse": lambda row: row[::-1],
    "drop the first": lambda row: row[1:],
    "drop the last": lambda row: row[:-1],
    "swap the ends": lambda row: [row[-1], *row[1:-1], row[0]] if len(row) > 1 else row,
    "move the first to the end": lambda row: row[1:] + row[:1],
    "repeat the last": lambda row: [*row, row[-1]],
}


def _derive(before: str, value: int, rng: random.Random) -> tuple[str, int, str]:
    """A new quantity from `before`: (equation, value, the sum as worked). Never negative."""
    if value >= 1 and rng.random() < 0.5:
        number = rng.randint(1, min(9, value))
        return f"{before} - {number}", value - number, f"{value}-{number}"
    number = rng.randint(1, 9)
    return f"{before} + {number}", value + number, f"{value}+{number}"


def _row(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))
