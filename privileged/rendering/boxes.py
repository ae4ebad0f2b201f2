"""Boxes: conversions between coordinate systems, clipping, and the JSON that Qwen3-VL grounds with.

Stored boxes are [x1, y1, x2, y2] in pixels of the stored image, x to the right, y down, the far edge exclusive: the
whole of a 48 x 32 image is [0, 0, 48, 32].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GRID = 1000
"""Qwen3-VL speaks of positions in thousandths of the image's width and height."""

BOX_FORMATS = ("xyxy", "xywh", "xyxy_1", "xywh_1", "xyxy_1000")
"""What a source may give: pixels, shares of the image (0-1), or thousandths (0-1000)."""

MAX_COORDINATE = 1e6


def to_pixels(bbox: Sequence[float], box_format: str, width: int, height: int) -> tuple[float, float, float, float]:
    """Any of `BOX_FORMATS` to pixel [x1, y1, x2, y2], not clipped.

    >>> to_pixels([0.25, 0.5, 0.5, 0.25], "xywh_1", 200, 100)
    (50.0, 50.0, 150.0, 75.0)
    """
    x, y, third, fourth = (float(value) for value in bbox)
    if box_format.startswith("xywh"):
        third, fourth = x + third, y + fourth
    scale = {"1": 1.0, "1000": 1.0 / GRID}.get(box_format.partition("_")[2])
    if scale is None:
        return x, y, third, fourth
    return x * width * scale, y * height * scale, third * width * scale, fourth * height * scale


def clip(bbox: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a box that lies in the image; it may be empty (x2 <= x1 or y2 <= y1).

    >>> clip([-5, 10, 60, 20], 48, 48)
    (0.0, 10.0, 48.0, 20.0)
    """
    x1, y1, x2, y2 = bbox
    return (
        min(max(float(x1), 0.0), float(width)),
        min(max(float(y1), 0.0), float(height)),
        min(max(float(x2), 0.0), float(width)),
        min(max(float(y2), 0.0), float(height)),
    )


def is_empty(bbox: Sequence[float]) -> bool:
    return bbox[2] <= bbox[0] or bbox[3] <= bbox[1]


def to_grid(bbox: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels to integer thousandths, rounded half up and clipped, with x1 < x2 and y1 < y2 whatever the rounding does.

    >>> to_grid([5, 3, 13, 14], 48, 48)     # 104.2, 62.5, 270.8, 291.7
    (104, 63, 271, 292)
    >>> to_grid([0.1, 0.1, 0.2, 0.2], 4000, 3000)
    (0, 0, 1, 1)
    """
    x1, x2 = _grid_pair(bbox[0], bbox[2], width)
    y1, y2 = _grid_pair(bbox[1], bbox[3], height)
    return x1, y1, x2, y2


def _grid_pair(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(math.floor(low / size * GRID + 0.5), 0), GRID)
    end = min(max(math.floor(high / size * GRID + 0.5), 0), GRID)
    if start < end:
        return start, end
    start = min(start, GRID - 1)
    return start, start + 1


def grounding_json(
    boxes: Iterable[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    *,
    with_label: bool = True,
    with_caption: bool = False,
) -> str:
    """Boxes as the JSON list that Qwen3-VL reads and writes, one object a line.

    `sizes` are the (width, height) of the prompt's images. With several images each object says which one it is in,
    counted from 1.

    >>> boxes = [{"label": "7", "bbox": [5, 3, 13, 14]}, {"label": "2", "bbox": [20, 4, 28, 14]}]
    >>> print(grounding_json(boxes, [(48, 48)]))
    [{"bbox_2d": [104, 63, 271, 292], "label": "7"},
    {"bbox_2d": [417, 83, 583, 292], "label": "2"}]
    """
    lines = []
    for box in boxes:
        index = box.get("image") or 0
        entry: dict[str, Any] = {"bbox_2d": list(to_grid(box["bbox"], *sizes[index]))}
        if with_label and box.get("label"):
            entry["label"] = box["label"]
        if with_caption and box.get("caption"):
            entry["caption"] = box["caption"]
        if len(sizes) > 1:
            entry["image"] = index + 1
        lines.append(json.dumps(entry, ensure_ascii=False))
    return "[" + ",\n".join(lines) + "]"


def boxes_block(json_text: str, heading: str = "Relevant objects") -> str:
    """Grounding JSON as it is appended to a prompt."""
    return f"{heading} (coordinates relative to 0-1000):\n```json\n{json_text}\n```"


def evidence_region(
    bboxes: Sequence[Sequence[float]], width: int, height: int, margin: float = 0.1, max_aspect: float = 20.0
) -> tuple[int, int, int, int]:
    """The whole-pixel rectangle around all boxes, with `margin` of its longer side added on each side.

    Its shorter side is widened, where the image allows, until the longer is at most `max_aspect` times as long: vision
    processors refuse slivers.

    >>> evidence_region([[10, 10, 20, 20], [30, 10, 40, 20]], 100, 100)
    (7, 7, 43, 23)
    """
    x1, y1 = min(box[0] for box in bboxes), min(box[1] for box in bboxes)
    x2, y2 = max(box[2] for box in bboxes), max(box[3] for box in bboxes)
    longer = max(x2 - x1, y2 - y1)
    pad = longer * margin
    shortest = (longer + 2 * pad) / max_aspect
    left, right = _padded(x1, x2, pad, shortest, width)
    top, bottom = _padded(y1, y2, pad, shortest, height)
    return left, top, right, bottom


def _padded(low: float, high: float, pad: float, shortest: float, size: int) -> tuple[int, int]:
    extra = max(pad, (shortest - (high - low)) / 2)
    start = min(max(math.floor(low - extra), 0), size - 1)
    end = max(min(math.ceil(high + extra), size), start + 1)
    return start, end
