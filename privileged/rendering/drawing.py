"""Boxes drawn on an image with supervision: outlines outside the boxes, labels where they cover nothing boxed.

The pixels inside every box stay exactly as they were. A line or label that would need them is left off, and the box is
reported as unmarked, so that the caller can name it in the prompt. supervision draws; it does not choose the places,
because its `smart_position` keeps labels off each other and inside the image, but lays them over neighbouring boxes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dopd_vl.common.quiet import import_supervision

Rectangle = tuple[int, int, int, int]
"""Whole pixels [left, top, right, bottom], the far edge exclusive."""

COLORS = ((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (255, 225, 25), (70, 240, 240))
"""Saturated and far from each other (after Trubetskoy's list of distinct colours), as RGB."""

VISIBLE_SHARE = 0.5
"""An outline of which less can be seen is left off: a stub would mislead more than it shows."""

SMALLEST_TEXT = 8
"""Pixels: a label in a smaller font cannot be read."""


@dataclass(frozen=True)
class Drawn:
    """A drawn-on copy, and the numbers of the boxes that the picture does not show in full (outline and label).

    `image` is the very object that was given when nothing could be drawn.
    """

    image: Image.Image
    unmarked: list[int]


@dataclass(frozen=True)
class _Label:
    text: str
    place: Rectangle
    font_size: int
    color: int


def draw_boxes(image: Image.Image, boxes: Sequence[Mapping[str, Any]]) -> Drawn:
    """Outline and label `boxes` ({label, bbox} in pixels) on a copy of `image`, which keeps its size.

    Line width and text size follow the image: 1 and 10 pixels on a 48 x 48 scene, 15 and 100 on a 4000 x 3000 photo.
    """
    short = min(image.size)
    line_width = max(1, round(short / 200))
    contents = [_content(box["bbox"], *image.size) for box in boxes]
    covered = np.zeros((image.height, image.width), dtype=bool)
    for left, top, right, bottom in contents:
        covered[top:bottom, left:right] = True

    original = np.asarray(image.convert("RGB"))
    rings = [_grown(content, line_width) for content in contents]
    outlined = [n for n in range(len(boxes)) if _visible_share(rings[n], line_width, covered) >= VISIBLE_SHARE]
    if not outlined:
        return Drawn(image, list(range(len(boxes))))
    colors = _pick_colors(original, [rings[n] for n in outlined])

    obstacles = covered.copy()
    for n in outlined:
        left, top, right, bottom = _clipped(rings[n], *image.size)
        obstacles[top:bottom, left:right] = True
    labels: list[_Label] = []
    unmarked = [n for n in range(len(boxes)) if n not in outlined]
    for n, color in zip(outlined, colors, strict=True):
        text = " ".join(str(boxes[n].get("label") or "").split())
        if not text:
            continue
        label = _place_label(text, rings[n], obstacles, short, color)
        if label is None:
            unmarked.append(n)
            continue
        left, top, right, bottom = label.place
        obstacles[top:bottom, left:right] = True
        labels.append(label)

    drawn = _draw_outlines(Image.fromarray(original), [contents[n] for n in outlined], line_width, colors)
    drawn = _draw_labels(drawn, labels)
    pixels = np.array(drawn)
    # Lines are placed outside their own box; where they would cross another box, its content comes back.
    pixels[covered] = original[covered]
    return Drawn(Image.fromarray(pixels), sorted(unmarked))


def _content(bbox: Sequence[float], width: int, height: int) -> Rectangle:
    """Every pixel that the box touches."""
    outer = (math.floor(bbox[0]), math.floor(bbox[1]), math.ceil(bbox[2]), math.ceil(bbox[3]))
    return _clipped(outer, width, height)


def _clipped(rectangle: Rectangle, width: int, height: int) -> Rectangle:
    left, top, right, bottom = rectangle
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _grown(rectangle: Rectangle, pixels: int) -> Rectangle:
    left, top, right, bottom = rectangle
    return left - pixels, top - pixels, right + pixels, bottom + pixels


def _visible_share(ring: Rectangle, line_width: int, covered: np.ndarray) -> float:
    """The share of an outline's pixels that are in the image and on no box."""
    left, top, right, bottom = ring
    area = (right - left) * (bottom - top)
    inner = (right - left - 2 * line_width) * (bottom - top - 2 * line_width)
    x1, y1, x2, y2 = _clipped(ring, covered.shape[1], covered.shape[0])
    # The box itself is covered, so the free pixels of the grown rectangle are free pixels of the outline.
    free = int(np.count_nonzero(~covered[y1:y2, x1:x2]))
    return free / max(1, area - inner)


def _pick_colors(pixels: np.ndarray, rings: Sequence[Rectangle]) -> list[int]:
    """A colour for each box: they take turns, but one that is close to what surrounds the box is passed over."""
    chosen = []
    for turn, ring in enumerate(rings):
        left, top, right, bottom = _clipped(ring, pixels.shape[1], pixels.shape[0])
        edge = np.concatenate(
            [
                pixels[top, left:right],
                pixels[bottom - 1, left:right],
                pixels[top:bottom, left],
                pixels[top:bottom, right - 1],
            ]
        ).astype(float)
        distance = [float(np.median(np.linalg.norm(edge - np.array(color), axis=1))) for color in COLORS]
        in_turn = [(turn + step) % len(COLORS) for step in range(len(COLORS))]
        clear = [color for color in in_turn if distance[color] > 120]
        chosen.append(clear[0] if clear else int(np.argmax(distance)))
    return chosen


def _place_label(text: str, ring: Rectangle, obstacles: np.ndarray, short: int, color: int) -> _Label | None:
    """The first place beside the outline, in the largest fitting font, that is inside the image and touches nothing."""
    height, width = obstacles.shape
    full = max(SMALLEST_TEXT + 2, round(short / 30))
    for font_size in sorted({full, max(SMALLEST_TEXT, round(full * 0.7))}, reverse=True):
        if not _drawable(text, font_size):
            return None
        w, h = _label_size(text, font_size)
        left, top, right, bottom = ring
        corners = [
            (left, top - h), (right - w, top - h), (left, bottom), (right - w, bottom),
            (left - w, top), (right, top), (left - w, bottom - h), (right, bottom - h),
        ]  # fmt: skip
        for x, y in corners:
            if x >= 0 and y >= 0 and x + w <= width and y + h <= height and not obstacles[y : y + h, x : x + w].any():
                return _Label(text, (x, y, x + w, y + h), font_size, color)
    return None


@functools.lru_cache(maxsize=64)
def _font(font_size: int) -> Any:
    return ImageFont.load_default(font_size)


def _padding(font_size: int) -> int:
    return max(1, font_size // 8)


def _label_size(text: str, font_size: int) -> tuple[int, int]:
    """Pixels that supervision's RichLabelAnnotator fills for a label (its background includes the far edge)."""
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=_font(font_size))
    padding = 2 * _padding(font_size)
    return int(right - left + padding) + 1, int(bottom - top + padding) + 1


@functools.lru_cache(maxsize=4096)
def _drawable(text: str, font_size: int) -> bool:
    """Whether the font has a sign for each character, and does not show the box that stands for a missing one."""
    font = _font(font_size)
    unknown = bytes(font.getmask("\U0010fffe"))
    return all(char.isspace() or bytes(font.getmask(char)) != unknown for char in text)


def _palette() -> Any:
    supervision = import_supervision()
    return supervision.ColorPalette(colors=[supervision.Color(*color) for color in COLORS])


def _text_palette() -> Any:
    """Black or white for each colour, whichever stands out from it (luma below the middle: white)."""
    supervision = import_supervision()
    dark = [0.299 * red + 0.587 * green + 0.114 * blue < 128 for red, green, blue in COLORS]
    return supervision.ColorPalette(colors=[supervision.Color.WHITE if d else supervision.Color.BLACK for d in dark])


def _draw_outlines(image: Image.Image, contents: list[Rectangle], line_width: int, colors: list[int]) -> Image.Image:
    """Each outline is `line_width` nested rectangles of one pixel, all outside the box."""
    supervision = import_supervision()
    nested, classes = [], []
    for content, color in zip(contents, colors, strict=True):
        for step in range(1, line_width + 1):
            left, top, right, bottom = _grown(content, step)
            nested.append((left, top, right - 1, bottom - 1))
            classes.append(color)
    detections = supervision.Detections(xyxy=np.array(nested, dtype=float), class_id=np.array(classes))
    return supervision.BoxAnnotator(color=_palette(), thickness=1).annotate(scene=image, detections=detections)


def _draw_labels(image: Image.Image, labels: list[_Label]) -> Image.Image:
    supervision = import_supervision()
    for font_size in sorted({label.font_size for label in labels}):
        group = [label for label in labels if label.font_size == font_size]
        # TOP_LEFT hangs the label's lower edge on a detection's upper one.
        anchors = [(x1, y2 - 1, x2, y2) for x1, _, x2, y2 in (label.place for label in group)]
        detections = supervision.Detections(
            xyxy=np.array(anchors, dtype=float), class_id=np.array([label.color for label in group])
        )
        annotator = supervision.RichLabelAnnotator(
            color=_palette(),
            text_color=_text_palette(),
            font_size=font_size,
            text_padding=_padding(font_size),
            text_position=supervision.Position.TOP_LEFT,
        )
        image = annotator.annotate(scene=image, detections=detections, labels=[label.text for label in group])
    return image
