"""Questions in words whose difficulty is to know what to do: many words mean the same few operations.

A step-wise hint says each operation plainly, so that it really helps whoever does not know the words yet. Train and
held-out problems are disjoint by construction: a hash of a problem's facts decides its split, whatever its phrasing.

Problems that look quantities up by name (`c = b+2; b = 7`) were tried and left out: models this small learn in-context
lookup only after many thousand steps.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from dopd_vl.nano.digits import SPLITS, Split
from dopd_vl.nano.problems import Problem, comparison, other_number, raw_record

NAMES = ("Mia", "Tom", "Ann", "Ben", "Eva", "Leo", "Zoe", "Sam")
THINGS = ("pens", "apples", "stamps", "coins", "shells", "books")
PLUS = ("add", "plus", "gain", "more")
MINUS = ("minus", "less", "drop", "cut")
GETS = ("buys", "finds", "wins", "gets")
LOSES = ("loses", "sells", "uses", "gives")
SUM = ("sum", "total", "whole")
DIFFERENCE = ("difference", "gap", "rest")
HELDOUT_SHARE = 5  # one problem in five is held out


def text_problem(index: int, split: Split, seed: int, kinds: Sequence[str] | None = None) -> tuple[str, Problem]:
    """Problem `index` of a split, the same at every call: (kind, problem)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    chosen = list(kinds or TEXT_TASKS)
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


def record_and_response(
    index: int, split: Split, seed: int, kinds: Sequence[str] | None = None
) -> tuple[dict[str, Any], str]:
    """See `raw_record`; without images or boxes."""
    kind, problem = text_problem(index, split, seed, kinds)
    return raw_record(f"text-{split}-{seed}-{index:06d}", kind, problem, "procedural")


def steps(rng: random.Random) -> Problem:
    """A number changed in turn by additions and subtractions under several names."""
    start = rng.randint(1, 9)
    changes = _changes(start, rng.randint(2, 3), rng)
    words = [rng.choice(PLUS if change > 0 else MINUS) for change in changes]
    told = ", ".join(f"{word} {abs(change)}" for word, change in zip(words, changes, strict=True))
    question = f"Start with {start}, {told}. What is it now?"
    first = ("Start with the given number.", f"Start with {start}.")
    return _changed_in_turn(question, start, changes, words, first, ["the next number"] * len(changes), rng)


def story(rng: random.Random) -> Problem:
    """Somebody's belongings change in turn."""
    name, thing, start = rng.choice(NAMES), rng.choice(THINGS), rng.randint(1, 9)
    changes = _changes(start, rng.randint(1, 3), rng)
    words = [rng.choice(GETS if change > 0 else LOSES) for change in changes]
    events = [f"{name} {word} {abs(change)}." for word, change in zip(words, changes, strict=True)]
    question = f"{name} has {start} {thing}. {' '.join(events)} How many {thing} does {name} have now?"
    first = (f"Start with what {name} has.", f"{name} has {start}.")
    return _changed_in_turn(question, start, changes, words, first, [f"what {name} {word}" for word in words], rng)


def rules(rng: random.Random) -> Problem:
    """One operation on a row of four digits, under one of several names."""
    digits = [rng.randint(0, 9) for _ in range(4)]
    meaning, other = rng.sample(list(OPERATIONS), 2)
    name, result = rng.choice(OPERATIONS[meaning][0]), OPERATIONS[meaning][1](digits)
    return Problem(
        question=f"Start with {_row(digits)}, then {name}. What is left?",
        answer=_row(result),
        task="exact",
        reasoning=f"{name}: {_row(result)}.",
        hints=("Write down the row.", f"Then {meaning}."),
        hints_executed=(f"The row is {_row(digits)}.", f"{meaning}: {_row(result)}."),
        hint_summary=f"To {name} is to {meaning}.",
        wrong_hint=f"To {name} is to {other}.",
        facts=(*digits, meaning),
    )


def compare(rng: random.Random) -> Problem:
    """Two sums or differences, under several names; which is larger."""
    sides, results, worked, hints = [], [], [], []
    facts: list[int | str] = []
    for option in "AB":
        first, second = rng.randint(1, 9), rng.randint(1, 9)
        sign = "+" if first < second or rng.random() < 0.5 else "-"
        results.append(first + second if sign == "+" else first - second)
        sides.append(f"({option}) {rng.choice(SUM if sign == '+' else DIFFERENCE)} of {first} and {second}")
        worked.append(f"{first}{sign}{second}={results[-1]}")
        hints.append(f"Option {option}: {'add' if sign == '+' else 'subtract'}.")
        facts += [first, sign, second]
    relation, letter = comparison(*results)
    return Problem(
        question=f"Which is larger? {' '.join(sides)} (C) equal",
        answer=letter,
        task="choice",
        reasoning=f"{worked[0]}. {worked[1]}. {relation}.",
        hints=(*hints, "Compare the two results."),
        hints_executed=(f"{worked[0]}.", f"{worked[1]}.", f"Compare: {relation}, so {letter}."),
        hint_summary=f"{hints[0]} {hints[1]}",
        wrong_hint=f"The right option is {rng.choice([other for other in 'ABC' if other != letter])}.",
        facts=tuple(facts),
    )


TEXT_TASKS: dict[str, Callable[[random.Random], Problem]] = {
    "steps": steps,
    "story": story,
    "rules": rules,
    "compare": compare,
}

# What an operation does: (its names in questions, the operation). The key is how a hint says it.
OPERATIONS: dict[str, tuple[tuple[str, ...], Callable[[list[int]], list[int]]]] = {
    "turn it round": (("reverse", "flip", "mirror"), lambda row: row[::-1]),
    "leave out the first": (("behead", "shift", "start late"), lambda row: row[1:]),
    "leave out the last": (("curtail", "trim", "stop early"), lambda row: row[:-1]),
    "write the last again": (("echo", "repeat", "extend"), lambda row: [*row, row[-1]]),
    "move the first to the end": (("rotate", "cycle", "roll"), lambda row: row[1:] + row[:1]),
}


def _changes(start: int, count: int, rng: random.Random) -> list[int]:
    """Signed changes after each of which the total is 0 to 9: one digit, one token."""
    changes, total = [], start
    for _ in range(count):
        change = rng.choice([n for n in range(-min(9, total), 10 - total) if n != 0])
        changes.append(change)
        total += change
    return changes


def _changed_in_turn(
    question: str,
    start: int,
    changes: Sequence[int],
    words: Sequence[str],
    first: tuple[str, str],
    changed_by: Sequence[str],
    rng: random.Random,
) -> Problem:
    """`words` name the changes; `first` is the first hint, plain and executed; hints say what it is `changed_by`."""
    sums, answer = _sums(start, changes), start + sum(changes)
    plain = [f"{'Add' if n > 0 else 'Take away'} {what}." for n, what in zip(changes, changed_by, strict=True)]
    return Problem(
        question=question,
        answer=str(answer),
        reasoning=" ".join(f"{step}." for step in sums),
        hints=(first[0], *plain),
        hints_executed=(first[1], *(f"{word}: {step}." for word, step in zip(words, sums, strict=True))),
        hint_summary=f"Start, then {_in_turn(changes)}.",
        wrong_hint=f"Start, then {_in_turn([-change for change in changes])}; it gives {other_number(answer, rng)}.",
        facts=(start, *changes),
    )


def _sums(start: int, changes: Sequence[int]) -> list[str]:
    """
    >>> _sums(7, [2, -4])
    ['7+2=9', '9-4=5']
    """
    sums, total = [], start
    for change in changes:
        sums.append(f"{total}{change:+d}={total + change}")
        total += change
    return sums


def _in_turn(changes: Sequence[int]) -> str:
    return ", ".join("add" if change > 0 else "take away" for change in changes)


def _row(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))
