"""Coordinates. The expected numbers are worked out by hand in the comments."""

import json

from hypothesis import given
from hypothesis import strategies as st

from privileged.rendering.boxes import clip, evidence_region, grounding_json, to_grid, to_pixels

SIDES = st.integers(1, 5000)
COORDINATES = st.floats(0, 1, allow_nan=False)


def test_pixels_become_thousandths_of_each_side():
    # x: 160/640 = 0.25, 480/640 = 0.75; y: 48/480 = 0.1, 432/480 = 0.9
    assert to_grid([160, 48, 480, 432], 640, 480) == (250, 100, 750, 900)
    # Halves go up: 0.5/1000 * 1000 = 0.5 -> 1 and 2.5 -> 3, where Python's round would give 0 and 2.
    assert to_grid([0.5, 0, 2.5, 1000], 1000, 1000) == (1, 0, 3, 1000)
    assert to_grid([0, 0, 48, 32], 48, 32) == (0, 0, 1000, 1000)


def test_boxes_outside_or_thinner_than_a_thousandth_stay_boxes_inside_the_grid():
    assert to_grid([3999.9, 2999.9, 4000, 3000], 4000, 3000) == (999, 999, 1000, 1000)
    assert to_grid([-50, -50, 5000, 5000], 4000, 3000) == (0, 0, 1000, 1000)


@given(SIDES, SIDES, COORDINATES, COORDINATES, COORDINATES, COORDINATES)
def test_grid_boxes_are_never_empty_and_never_outside(width, height, a, b, c, d):
    bbox = [min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height]
    x1, y1, x2, y2 = to_grid(bbox, width, height)
    assert 0 <= x1 < x2 <= 1000
    assert 0 <= y1 < y2 <= 1000
    # No edge moves by more than rounding and the least width ask for.
    for got, pixel, side in ((x1, bbox[0], width), (y1, bbox[1], height), (x2, bbox[2], width), (y2, bbox[3], height)):
        assert abs(got - pixel / side * 1000) <= 1.5


def test_every_format_of_a_source_means_the_same_box():
    # A 200 x 100 image, the box from (50, 20) to (150, 60).
    for box_format, bbox in {
        "xyxy": [50, 20, 150, 60],
        "xywh": [50, 20, 100, 40],
        "xyxy_1": [0.25, 0.2, 0.75, 0.6],
        "xywh_1": [0.25, 0.2, 0.5, 0.4],
        "xyxy_1000": [250, 200, 750, 600],
    }.items():
        found = to_pixels(bbox, box_format, 200, 100)
        assert [round(value, 9) for value in found] == [50, 20, 150, 60], box_format


def test_clipping_keeps_what_is_inside():
    assert clip([-5, 10, 60, 20], 48, 48) == (0, 10, 48, 20)


def test_grounding_json_is_json_with_one_object_a_line_and_image_numbers_only_where_there_are_several():
    boxes = [
        {"label": 'a "quoted" 桜', "bbox": [12, 8, 24, 16], "caption": "big", "image": 1},
        {"label": "b", "bbox": [0, 0, 10, 10], "caption": None, "image": 0},
    ]
    text = grounding_json(boxes, [(100, 100), (48, 32)], with_caption=True)
    assert len(text.splitlines()) == 2
    # 12/48 = 0.25, 8/32 = 0.25, 24/48 = 0.5, 16/32 = 0.5
    assert json.loads(text) == [
        {"bbox_2d": [250, 250, 500, 500], "label": 'a "quoted" 桜', "caption": "big", "image": 2},
        {"bbox_2d": [0, 0, 100, 100], "label": "b", "image": 1},
    ]
    alone = grounding_json([{"label": "b", "bbox": [0, 0, 10, 10]}], [(100, 100)], with_label=False)
    assert json.loads(alone) == [{"bbox_2d": [0, 0, 100, 100]}]


def test_the_evidence_region_is_the_union_with_a_margin_inside_the_image():
    # The union is (10, 10)-(40, 20), its longer side 30, so 3 pixels of margin: (7, 7)-(43, 23).
    assert evidence_region([[10, 10, 20, 20], [30, 10, 40, 20]], 100, 100) == (7, 7, 43, 23)
    assert evidence_region([[0, 0, 100, 50]], 100, 50) == (0, 0, 100, 50)


@given(SIDES, SIDES, COORDINATES, COORDINATES, COORDINATES, COORDINATES)
def test_the_evidence_region_always_holds_a_pixel(width, height, a, b, c, d):
    bbox = [min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height]
    left, top, right, bottom = evidence_region([bbox], width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
