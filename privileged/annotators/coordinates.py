"""Which coordinates a model's boxes are in, as its first replies show.

A box's far corner is taken to lie anywhere in its frame (thousandths, pixels, shares) with the same density, so the
smallest frame that holds what was said is the likeliest: numbers up to 640 in an image of 640 x 480 speak for pixels,
numbers beyond its sides for thousandths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from privileged.annotators.settings import COORDINATES
from privileged.records.grounding import SLACK, coordinate_frame

FIRST_REPLIES = 20
"""Replies that are looked at, of those that hold a box."""

LEAD = math.log(1000)
"""By how many nats the likeliest reading must lead: fewer than a thousand to one leave it open."""

AGREEING = 0.9
"""The share of boxes that must lie within the frame which is chosen."""

_OUTSIDE = math.log(1e-3 / 1e8)
"""The log-density of a corner beyond its frame: one in a thousand, somewhere in 10,000 x 10,000."""

Replied = tuple[list[float], tuple[int, int]]
"""The four numbers of a box, and the size of its image in pixels."""


def likeliest_coordinates(boxes: Sequence[Replied]) -> tuple[str | None, str]:
    """The coordinates that boxes are in, or None where they leave it open; and the evidence, for people.

    >>> likeliest_coordinates([([100, 200, 610, 470], (640, 480))] * 12)[0]
    'absolute'
    >>> likeliest_coordinates([([100, 200, 710, 990], (640, 480))])
    ('relative_1000', '1 box with x to 710 and y to 990; within relative_1000: 1, absolute: 0, relative_1: 0')
    >>> likeliest_coordinates([([100, 200, 600, 400], (1000, 1000))] * 12)[0]
    """
    inside = {name: sum(_is_inside(box, name) for box in boxes) for name in COORDINATES}
    likelihood = {name: sum(_log_density(box, name) for box in boxes) for name in COORDINATES}
    best, second = sorted(COORDINATES, key=lambda name: -likelihood[name])[:2]
    clear = likelihood[best] - likelihood[second] > LEAD and inside[best] >= AGREEING * len(boxes)
    x, y = (max((corners[place] for corners, _ in boxes), default=0) for place in (2, 3))
    counts = ", ".join(f"{name}: {count}" for name, count in inside.items())
    told = f"{len(boxes)} box{'es' * (len(boxes) != 1)} with x to {x:g} and y to {y:g}; within {counts}"
    return best if clear else None, told


def _is_inside(box: Replied, coordinates: str) -> bool:
    corners, size = box
    frame = coordinate_frame(coordinates, size)
    return all(-SLACK <= value / side <= 1 + SLACK for value, side in zip(corners, frame * 2, strict=True))


def _log_density(box: Replied, coordinates: str) -> float:
    return -math.log(math.prod(coordinate_frame(coordinates, box[1]))) if _is_inside(box, coordinates) else _OUTSIDE
