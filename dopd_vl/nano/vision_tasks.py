"""Questions about a scene of handwritten digits: each needs looking, then a little reasoning."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dopd_vl.nano.digits import Split
from dopd_vl.nano.problems import Problem, comparison, other_number, raw_record, sum_steps
from dopd_vl.nano.scenes import COLUMNS, GRID, ROWS, Scene, cell_name, compose, transcript

CELLS = range(GRID * GRID)
Labels = dict[int, int]


def vision_problem(
    index: int, split: Split, seed: int, kinds: Sequence[str] | None = None
) -> tuple[str, Scene, Problem]:
    """Problem `index` of a split, the same at every call: (kind, scene, problem)."""
    chosen = list(kinds or VISION_TASKS)
    kind = chosen[index % len(chosen)]
    rng = random.Random(f"vision/{split}/{seed}/{kind}/{index}")
    labels, problem = VISION_TASKS[kind](rng)
    # Look first, then think: what is seen is written down cell by cell, and the reasoning goes on from there.
    reasoning = f"I see {transcript(labels)}. {problem.reasoning}".rstrip()
    problem = replace(problem, reasoning=reasoning, related=problem.related or tuple(labels))
    return kind, compose(labels, split, rng), problem


def record_and_response(
    index: int, split: Split, seed: int, kinds: Sequence[str] | None = None
) -> tuple[dict[str, Any], str]:
    """See `raw_record`; its image is a PIL image."""
    kind, scene, problem = vision_problem(index, split, seed, kinds)
    boxes = [
        {
            "label": str(scene.labels[cell]),
            "bbox": list(scene.boxes[cell]),
            "caption": f"a handwritten {scene.labels[cell]} at {cell_name(cell)}",
            "image": 0,
        }
        for cell in problem.related
    ]
    place, caption = f"vision-{split}-{seed}-{index:06d}", _caption(scene.labels)
    return raw_record(place, kind, problem, "composed", [scene.image], caption, boxes)


def read_all(rng: random.Random) -> tuple[Labels, Problem]:
    labels = _scatter(rng, rng.randint(2, 5))
    digits = list(labels.values())
    answer = "".join(map(str, digits))
    wrong = digits.copy()
    place = rng.randrange(len(wrong))
    wrong[place] = (wrong[place] + rng.randint(1, 9)) % 10
    question = rng.choice(
        ["Read the digits from the top left to the bottom right.", "Write down all digits in reading order."]
    )
    return labels, Problem(
        question=question,
        answer=answer,
        task="exact",
        reasoning="",
        hints=("Go through the cells from top left to bottom right.", "Read each digit.", "Join the digits you read."),
        hints_executed=(f"The digits are {_spaced(digits)}.", f"Joined they are {answer}."),
        hint_summary="Read row by row and join the digits.",
        wrong_hint=f"The digits are {_spaced(wrong)}.",
    )


def add(rng: random.Random) -> tuple[Labels, Problem]:
    labels = _scatter(rng, rng.randint(2, 4))
    digits = list(labels.values())
    total = sum(digits)
    question = rng.choice(["Add all the digits.", "What is the sum of the digits?", "What do the digits add up to?"])
    return labels, Problem(
        question=question,
        answer=str(total),
        reasoning=f"{sum_steps(digits)}.",
        hints=("Read every digit of the picture.", "Add them in turn."),
        hints_executed=(f"The digits are {_spaced(digits)}.", f"Add them: {sum_steps(digits)}."),
        hint_summary="Read every digit, then add them up.",
        wrong_hint=f"The digits add up to {other_number(total, rng)}.",
    )


def count(rng: random.Random) -> tuple[Labels, Problem]:
    target = rng.randint(0, 9)
    matches = rng.choice([1, 2, 2, 3, 3, 4])
    others = rng.randint(1 if matches == 1 else 0, 5 - matches)
    shown = [target] * matches + [rng.choice([d for d in range(10) if d != target]) for _ in range(others)]
    labels = _place(rng, shown)
    digits = list(labels.values())
    counted = f"{target} comes {matches} {'time' if matches == 1 else 'times'}."
    question = rng.choice([f"How many {target}s are there?", f"Count the {target}s in the picture."])
    return labels, Problem(
        question=question,
        answer=str(matches),
        reasoning=counted,
        # The digit asked for may equal the count: hints that name it would look as if they told the answer.
        hints=("Read every digit of the picture.", "Count those of the kind asked for."),
        hints_executed=(f"The digits are {_spaced(digits)}.", counted),
        hint_summary="Read every digit and count the kind asked for.",
        wrong_hint=f"There are {rng.choice([n for n in range(1, 6) if n != matches])} of them.",
    )


def neighbour(rng: random.Random) -> tuple[Labels, Problem]:
    side, (down, right) = rng.choice(
        [("left of", (0, -1)), ("right of", (0, 1)), ("above", (-1, 0)), ("below", (1, 0))]
    )
    inside = [cell for cell in CELLS if 0 <= cell // GRID + down < GRID and 0 <= cell % GRID + right < GRID]
    anchor_cell = rng.choice(inside)
    found_cell = anchor_cell + GRID * down + right
    anchor = rng.randint(0, 9)
    free = [cell for cell in CELLS if cell not in (anchor_cell, found_cell)]
    cells = [found_cell, *rng.sample(free, rng.randint(1, 3))]
    labels = {cell: rng.choice([d for d in range(10) if d != anchor]) for cell in cells}
    labels = dict(sorted({**labels, anchor_cell: anchor}.items()))
    found = labels[found_cell]
    wrong = rng.choice([d for d in range(10) if d not in (found, anchor)])
    question = rng.choice([f"Which digit is {side} the {anchor}?", f"What is directly {side} the {anchor}?"])
    return labels, Problem(
        question=question,
        answer=str(found),
        reasoning=f"The {anchor} is at {cell_name(anchor_cell)}. At {cell_name(found_cell)} is {found}.",
        hints=(f"Find the cell that holds the {anchor}.", f"Move to the cell {side} it.", "Read the digit there."),
        hints_executed=(
            f"The {anchor} is at {cell_name(anchor_cell)}.",
            f"The cell {side} it is {cell_name(found_cell)}.",
            f"The digit there is {found}.",
        ),
        hint_summary=f"Find the {anchor}, then look {side} it.",
        wrong_hint=f"The digit {side} the {anchor} is {wrong}.",
        related=tuple(sorted((anchor_cell, found_cell))),
    )


def extreme(rng: random.Random) -> tuple[Labels, Problem]:
    labels = _scatter(rng, rng.randint(3, 5))
    digits = list(labels.values())
    word, pick = rng.choice([("largest", max), ("smallest", min)])
    found = pick(digits)
    wrong = rng.choice([d for d in range(10) if d != found])
    question = rng.choice([f"What is the {word} digit?", f"Which digit is the {word}?"])
    return labels, Problem(
        question=question,
        answer=str(found),
        reasoning=f"The {word} is {found}.",
        hints=("Read every digit of the picture.", f"Keep the {word}."),
        hints_executed=(f"The digits are {_spaced(digits)}.", f"The {word} of them is {found}."),
        hint_summary=f"Read every digit and keep the {word}.",
        wrong_hint=f"The {word} digit is {wrong}.",
    )


def compare(rng: random.Random) -> tuple[Labels, Problem]:
    across = rng.random() < 0.5
    regions = [(f"{COLUMNS[i]} column" if across else f"{ROWS[i]} row", _region(i, across)) for i in (0, 2)]
    rng.shuffle(regions)
    (first_name, first_cells), (second_name, second_cells) = regions
    middle = _region(1, across)
    chosen = [rng.sample(first_cells, rng.randint(1, 2)), rng.sample(second_cells, rng.randint(1, 2))]
    aside = rng.sample(middle, rng.randint(0, 1))
    labels = {cell: rng.randint(0, 9) for cell in (*chosen[0], *chosen[1], *aside)}
    if rng.random() < 0.2:  # an even comparison is rare by chance
        for cell, twin in zip(chosen[0], rng.sample(chosen[1], len(chosen[1])), strict=False):
            labels[twin] = labels[cell]
    labels = dict(sorted(labels.items()))
    sides = [[digit for cell, digit in labels.items() if cell in cells] for cells in (first_cells, second_cells)]
    totals = [sum(side) for side in sides]
    sign, letter = comparison(*totals)
    wrong = rng.choice([other for other in "ABC" if other != letter])
    related = tuple(cell for cell in labels if cell in first_cells or cell in second_cells)
    return labels, Problem(
        question=f"Which has the larger sum? (A) {first_name} (B) {second_name} (C) equal",
        answer=letter,
        task="choice",
        reasoning=f"A: {sum_steps(sides[0])}. B: {sum_steps(sides[1])}. {sign}.",
        hints=(
            f"Add the digits of the {first_name}.",
            f"Add the digits of the {second_name}.",
            "Compare the two sums.",
        ),
        hints_executed=(
            f"{first_name}: {sum_steps(sides[0])}.",
            f"{second_name}: {sum_steps(sides[1])}.",
            f"Compare: {sign}, so {letter}.",
        ),
        hint_summary=f"Compare the sum of the {first_name} with the sum of the {second_name}.",
        wrong_hint=f"The right option is {wrong}.",
        related=related,
    )


VISION_TASKS: dict[str, Callable[[random.Random], tuple[Labels, Problem]]] = {
    "read": read_all,
    "add": add,
    "count": count,
    "neighbour": neighbour,
    "extreme": extreme,
    "compare": compare,
}


def _scatter(rng: random.Random, digits: int) -> Labels:
    return _place(rng, [rng.randint(0, 9) for _ in range(digits)])


def _place(rng: random.Random, digits: list[int]) -> Labels:
    """Each digit in a random cell of its own; keys in reading order."""
    return dict(sorted(zip(rng.sample(CELLS, len(digits)), digits, strict=True)))


def _region(position: int, across: bool) -> list[int]:
    return [cell for cell in CELLS if (cell % GRID if across else cell // GRID) == position]


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))


def _caption(labels: Labels) -> str:
    places = ", ".join(f"{digit} at {cell_name(cell)}" for cell, digit in labels.items())
    return f"{len(labels)} digits: {places}."
