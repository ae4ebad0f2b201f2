"""Boxes on pictures: seen, labelled, and never over what they point at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from privileged_samples import noise

from privileged.rendering.drawing import draw_boxes


def strictly_inside(bbox, pixels):
    x1, y1, x2, y2 = bbox
    return pixels[int(np.ceil(y1)) : int(np.floor(y2)), int(np.ceil(x1)) : int(np.floor(x2))]


@st.composite
def scenes(draw):
    width, height = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    boxes = []
    for _ in range(draw(st.integers(1, 6))):
        x1, y1 = draw(st.floats(0, width - 2)), draw(st.floats(0, height - 2))
        x2, y2 = draw(st.floats(x1 + 0.5, width)), draw(st.floats(y1 + 0.5, height))
        boxes.append({"label": draw(st.sampled_from(["7", "cat", "a long label", "桜", ""])), "bbox": [x1, y1, x2, y2]})
    return width, height, boxes


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_drawing_changes_no_pixel_inside_any_box_and_keeps_the_size(scene):
    width, height, boxes = scene
    image = noise(width, height)
    before = np.array(image)
    drawn = draw_boxes(image, boxes)
    assert drawn.image.size == (width, height)
    assert np.array_equal(np.array(image), before), "the picture that was given stays as it was"
    after = np.array(drawn.image)
    for box in boxes:
        assert np.array_equal(strictly_inside(box["bbox"], after), strictly_inside(box["bbox"], before))


def test_an_outline_goes_around_the_box_and_follows_the_size_of_the_image():
    for side, line in ((48, 1), (1000, 5)):
        low, high = side // 4, side // 2
        image = Image.new("RGB", (side, side), "white")
        drawn = np.array(draw_boxes(image, [{"label": "", "bbox": [low, low, high, high]}]).image)
        changed = np.argwhere((drawn != 255).any(axis=2))
        assert changed.min() == low - line
        assert changed.max() == high - 1 + line
        ring = (high - low + 2 * line) ** 2 - (high - low) ** 2
        assert len(changed) == ring


def test_a_label_is_drawn_beside_its_box_where_there_is_room():
    image = Image.new("RGB", (48, 48), "black")
    bare = draw_boxes(image, [{"label": "", "bbox": [16, 16, 30, 30]}])
    labelled = draw_boxes(image, [{"label": "7", "bbox": [16, 16, 30, 30]}])
    assert bare.unmarked == labelled.unmarked == []
    extra = (np.array(bare.image) != np.array(labelled.image)).any(axis=2)
    assert extra.sum() > 40, "a label of some 6 x 9 pixels"


@pytest.mark.parametrize(
    ("boxes", "unmarked"),
    [
        # The whole image: there is no place for an outline.
        ([{"label": "all", "bbox": [0, 0, 48, 48]}], [0]),
        # Inside another box: its outline would cover what the other one points at.
        ([{"label": "", "bbox": [4, 4, 44, 44]}, {"label": "", "bbox": [10, 10, 20, 20]}], [1]),
        # A label wider than the image, and one that the font has no signs for.
        ([{"label": "an extraordinarily long label", "bbox": [10, 10, 20, 20]}], [0]),
        ([{"label": "桜", "bbox": [10, 10, 20, 20]}], [0]),
        # Every cell taken: no label finds a place.
        ([{"label": "x", "bbox": [x, y, x + 12, y + 12]} for x in (2, 18, 34) for y in (2, 18, 34)], list(range(9))),
    ],
)
def test_what_finds_no_room_is_reported(boxes, unmarked):
    assert draw_boxes(noise(48, 48), boxes).unmarked == unmarked


def test_colours_stand_out_from_what_surrounds_the_box():
    for color in ((230, 25, 75), (255, 255, 255), (0, 0, 0), (60, 180, 75), (128, 128, 128)):
        image = Image.new("RGB", (100, 100), color)
        drawn = np.array(draw_boxes(image, [{"label": "", "bbox": [20, 20, 60, 60]}]).image)
        line = drawn[19, 30].astype(float)
        assert np.linalg.norm(line - np.array(color)) > 100


def test_a_large_photo_is_drawn_on_as_well():
    image = Image.new("RGB", (4000, 3000), "gray")
    drawn = draw_boxes(image, [{"label": "traffic light", "bbox": [500, 500, 900, 1500]}])
    assert drawn.unmarked == []
    changed = np.argwhere((np.array(drawn.image) != 128).any(axis=2))
    # The label stands above the box, about a thirtieth of the shorter side high.
    assert 500 - 15 - 150 < changed[:, 0].min() < 500 - 15 - 60
