"""Scenes, boxes and vision tasks: what the records say is what the picture shows."""

import re

import numpy as np
import pytest

from dopd_vl.nano.digits import load_digits
from dopd_vl.nano.scenes import CELL, GRID, SIZE
from dopd_vl.nano.vision_tasks import VISION_TASKS, record_and_response, vision_problem
from privileged import VARIANTS

INDEXES = range(120)
COMPASS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def at(labels, row, column):
    inside = 0 <= row < GRID and 0 <= column < GRID
    return labels.get(row * GRID + column) if inside else None


def answer_of(kind, question, labels):
    """The answer worked out anew from the question's words and the grid alone."""
    digits = [labels[cell] for cell in sorted(labels)]
    named = [int(n) for n in re.findall(r"\d", question)]
    if kind == "read":
        return "".join(str(digit) for digit in digits)
    if kind == "add":
        return str(sum(digits))
    if kind == "count":
        return str(digits.count(named[0]))
    if kind == "extreme":
        return str(sorted(digits)[-1 if "largest" in question else 0])
    if kind == "neighbour":
        (cell,) = [cell for cell, digit in labels.items() if digit == named[0]]
        down, right = next(step for words, step in COMPASS.items() if words in question)
        return str(at(labels, cell // GRID + down, cell % GRID + right))
    sums = []
    for region in re.findall(r"\([AB]\) (\w+ \w+)", question):
        place, line = region.split()
        position = {"left": 0, "top": 0, "right": 2, "bottom": 2}[place]
        cells = [(i, position) if line == "column" else (position, i) for i in range(GRID)]
        sums.append(sum(at(labels, *cell) or 0 for cell in cells))
    return "A" if sums[0] > sums[1] else "B" if sums[0] < sums[1] else "C"


@pytest.mark.parametrize("kind", VISION_TASKS)
def test_answers_agree_with_an_independent_reading_of_the_grid(kind):
    for index in INDEXES:
        _, scene, problem = vision_problem(index, "train", 3, [kind])
        assert problem.answer == answer_of(kind, problem.question, scene.labels), (index, problem.question)
        assert problem.response.endswith(f"Answer: {problem.answer}")


@pytest.mark.parametrize("kind", VISION_TASKS)
def test_both_ways_out_of_every_task_occur(kind):
    assert len({vision_problem(index, "train", 0, [kind])[2].answer for index in INDEXES}) >= 3


def test_a_box_is_the_exact_extent_of_its_digits_ink():
    for index in INDEXES:
        _, scene, problem = vision_problem(index, "train", 0)
        pixels = np.asarray(scene.image).astype(int)
        paper = np.median(pixels.reshape(-1, 3), axis=0)  # most of a scene is paper
        inked = np.abs(pixels - paper).max(-1) > 0
        assert set(scene.boxes) == set(scene.labels) >= set(problem.related)
        for cell, (x1, y1, x2, y2) in scene.boxes.items():
            left, top = cell % GRID * CELL, cell // GRID * CELL
            rows, columns = np.nonzero(inked[top : top + CELL, left : left + CELL])
            found = (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)
            assert found == (x1, y1, x2, y2)
        empty = [cell for cell in range(GRID * GRID) if cell not in scene.labels]
        for cell in empty:
            left, top = cell % GRID * CELL, cell // GRID * CELL
            assert not inked[top : top + CELL, left : left + CELL].any()


def test_boxes_name_the_digits_that_the_question_needs_and_no_others():
    for index in INDEXES:
        kind, scene, problem = vision_problem(index, "heldout", 0)
        boxes = record_and_response(index, "heldout", 0)[0]["privileged"]["boxes"]
        assert [(box["label"], tuple(box["bbox"])) for box in boxes] == [
            (str(scene.labels[cell]), scene.boxes[cell]) for cell in problem.related
        ]
        if kind in ("neighbour", "compare"):
            assert 2 <= len(boxes) <= len(scene.labels) - (1 if kind == "neighbour" else 0)
        else:
            assert len(boxes) == len(scene.labels)


def test_a_record_is_the_same_at_every_call_and_another_for_every_seed_and_index():
    first, again = record_and_response(7, "train", 0)[0], record_and_response(7, "train", 0)[0]
    assert np.array_equal(np.asarray(first.pop("images")[0]), np.asarray(again.pop("images")[0]))
    assert first == again
    others = [
        record_and_response(7, "train", 1)[0],
        record_and_response(13, "train", 0)[0],
        record_and_response(7, "heldout", 0)[0],
    ]
    assert len({record["id"] for record in [first, *others]}) == 4
    assert all(np.asarray(record["images"][0]).shape == (SIZE, SIZE, 3) for record in others)


def test_no_digit_is_in_both_splits():
    train, heldout = load_digits("train"), load_digits("heldout")
    assert (len(train.labels), len(heldout.labels)) == (1300, 497)
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in heldout.images}
    shares = [len(heldout.by_label[d]) / (len(heldout.by_label[d]) + len(train.by_label[d])) for d in range(10)]
    assert max(shares) - min(shares) < 0.01


def test_unexecuted_hints_hold_no_digit_but_the_one_that_a_neighbour_question_names():
    for index in INDEXES:
        kind, _, problem = vision_problem(index, "train", 0)
        named = set(re.findall(r"\d", problem.question)) if kind == "neighbour" else set()
        told = set(re.findall(r"\d", " ".join((*problem.hints, problem.hint_summary))))
        assert told <= named
        assert problem.answer not in told


RESIZED = ("evidence_crop", "masked_crop", "zoomed", "half_resolution", "augmented")


def test_wrong_hints_are_wrong():
    for index in INDEXES:
        kind, _, problem = vision_problem(index, "train", 0)
        claimed = problem.wrong_hint.rstrip(".").split()[-1]
        if kind == "count":
            claimed = re.findall(r"\d+", problem.wrong_hint)[-1]
        if kind == "read":
            claimed = "".join(re.findall(r"\d", problem.wrong_hint))
        assert claimed != problem.answer
        assert claimed in "ABC" or claimed.isdigit()


def test_every_variant_can_show_every_record_and_leaves_the_picture_size_alone():
    for index in range(12):
        record = record_and_response(index, "train", 0)[0]
        for name, variant in VARIANTS.items():
            shown = {**record, "other": record} if name.startswith("other_") else record
            assert variant.missing(shown) is None
            images = variant.render(shown).images
            assert len(images) == (name != "no_prompt")
            assert name in RESIZED or all(image.size == (SIZE, SIZE) for image in images)
