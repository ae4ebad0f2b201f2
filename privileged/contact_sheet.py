"""A grid of sampled images, with their boxes and labels drawn on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .drawing import COLORS, draw_boxes

TILE = 300
GAP = 12
CAPTION = 36
FONT_SIZE = 13


def contact_sheet(examples: Sequence[Mapping[str, Any]]) -> Image.Image:
    """One tile for each example: its first image with its boxes, its id and its answer."""
    columns = min(4, len(examples))
    rows = math.ceil(len(examples) / columns)
    size = (columns * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for number, example in enumerate(examples):
        left = GAP + number % columns * (TILE + GAP)
        top = GAP + number // columns * (TILE + CAPTION + GAP)
        picture = with_boxes(example, 0, TILE)
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
        texts = _fitted_end(example["id"], font), _fitted(f"answer: {example['answer']}", font)
        for line, text in enumerate(texts):
            draw.text((left, top + TILE + 2 + line * 16), text, fill=(40, 40, 40), font=font)
    return sheet


def with_boxes(example: Mapping[str, Any], number: int, side: int) -> Image.Image:
    """One image of an example, its longer side `side` pixels, with boxes whose labels are legible at that size.

    For people: a box at the edge, whose outline `draw_boxes` leaves off, is outlined on its own pixels instead.
    """
    image = example["images"][number]
    picture = resized(image, side)
    scale_x, scale_y = picture.width / image.width, picture.height / image.height
    boxes = [
        {**box, "bbox": [value * scale for value, scale in zip(box["bbox"], (scale_x, scale_y) * 2, strict=True)]}
        for box in example["privileged"]["boxes"]
        if (box.get("image") or 0) == number
    ]
    if not boxes:
        return picture
    drawn = draw_boxes(picture, boxes)
    pencil = ImageDraw.Draw(drawn.image)
    for unmarked in drawn.unmarked:
        x1, y1, x2, y2 = boxes[unmarked]["bbox"]
        right, bottom = min(x2, picture.width - 1), min(y2, picture.height - 1)
        corners = (min(max(x1, 0), right), min(max(y1, 0), bottom), right, bottom)
        pencil.rectangle(corners, outline=COLORS[unmarked % len(COLORS)], width=2)
    return drawn.image


def resized(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side `side` pixels; small ones are enlarged pixel by pixel."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _fitted(text: str, font: Any) -> str:
    text = " ".join(text[:200].split())
    while text and font.getlength(text) > TILE:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text


def _fitted_end(text: str, font: Any) -> str:
    """The end of an id that is too long: that is where ids differ."""
    while font.getlength(text) > TILE:
        text = "…" + text.lstrip("…")[1:]
    return text
