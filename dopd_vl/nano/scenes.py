"""Scenes: handwritten digits on a 3 x 3 grid, 48 x 48 pixels, with the exact box of every digit's ink.

A grid cell is 16 x 16 pixels: one merged patch of the nano vision tower (patch 8, merge 2), so that every digit reaches
the language model as one token. With digits off that grid a model this small learns nothing.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dopd_vl.nano.digits import Split, load_digits

GRID = 3
CELL = 16
SIZE = GRID * CELL
INK = 14  # a digit's largest side in pixels, of the 16 of its cell
INK_FLOOR = 0.12  # fainter ink is dropped, so that a box is the exact extent of what is drawn

EMPTY = "~"
"""Stands for an empty cell in a transcript."""

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")


@dataclass(frozen=True)
class Scene:
    """labels[cell] is the digit shown in a cell (0 to 8 in reading order), absent for an empty cell."""

    image: Image.Image
    labels: dict[int, int]
    boxes: dict[int, tuple[float, float, float, float]]  # x1, y1, x2, y2 in pixels, x2 and y2 one past the ink


def cell_name(cell: int) -> str:
    """
    >>> cell_name(0), cell_name(4), cell_name(5)
    ('top left', 'middle centre', 'middle right')
    """
    return f"{ROWS[cell // GRID]} {COLUMNS[cell % GRID]}"


def transcript(labels: dict[int, int]) -> str:
    """A scene as text, cell by cell in reading order.

    >>> transcript({0: 3, 4: 7, 8: 1})
    '3~~~7~~~1'
    """
    return "".join(str(labels.get(cell, EMPTY)) for cell in range(GRID * GRID))


def compose(labels: dict[int, int], split: Split, rng: random.Random) -> Scene:
    """Draw the digits in handwriting chosen by `rng` from the split, in a random ink on a random paper."""
    digits = load_digits(split)
    paper = np.array([rng.uniform(0.75, 1.0) for _ in range(3)])
    ink = np.array([rng.uniform(0.0, 0.3) for _ in range(3)])
    strength = np.zeros((SIZE, SIZE))
    boxes = {}
    for cell in sorted(labels):
        glyph = _glyph(digits.images[rng.choice(digits.by_label[labels[cell]])], rng)
        height, width = glyph.shape
        top = cell // GRID * CELL + _offset(height, rng)
        left = cell % GRID * CELL + _offset(width, rng)
        strength[top : top + height, left : left + width] = glyph
        boxes[cell] = (float(left), float(top), float(left + width), float(top + height))
    pixels = paper + strength[..., None] * (ink - paper)
    return Scene(Image.fromarray((pixels * 255).round().astype(np.uint8)), dict(sorted(labels.items())), boxes)


def _offset(side: int, rng: random.Random) -> int:
    """Where the ink starts within its cell: in the middle, give or take a pixel."""
    return min(max((CELL - side) // 2 + rng.randint(-1, 1), 0), CELL - side)


def _glyph(digit: np.ndarray, rng: random.Random) -> np.ndarray:
    """The 8 x 8 digit enlarged to about 14 pixels, cut to its ink: [height, width], ink 0 to 1."""
    side = rng.randint(INK - 1, INK + 1)
    enlarged = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR)) / 240.0
    enlarged = np.where(enlarged < INK_FLOOR, 0.0, enlarged)
    rows, columns = np.flatnonzero(enlarged.any(1)), np.flatnonzero(enlarged.any(0))
    return enlarged[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
