"""Some records of a preparation to look at: which, what the audit said of them, and the files that show them.

The places are drawn from the seed before anything is read, so that a killed run shows what an undisturbed one does.
`sample.html.jinja` is the page: the template escapes whatever the data says, and a content security policy lets nothing
in from outside.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dopd_vl.common.files import write_atomically
from privileged.records.fields import Finding
from privileged.records.images import png_file
from privileged.rendering.drawing import COLORS, draw_boxes
from privileged.rendering.variants import VARIANTS
from privileged.schema import IMAGE_MARKER, Example

SHEET_FILE, PAGE_FILE = "sample.png", "sample.html"
TEMPLATE = Path(__file__).with_name("sample.html.jinja")
REJECTED_SHOWN = 12

LARGE, SMALL, THUMBNAIL = 440, 240, 200
"""Longer sides, in pixels, of a record's images, of what variants make of them, and of the page's own contact sheet."""

MAX_TEXT, MAX_IMAGES, QUESTION_SHOWN = 4000, 4, 200
"""Characters that are shown of a text, images of a record, and characters of a question on the contact sheet."""

OPENED = ("hints", "box_label")
"""Variants whose prompt is seen at once: the defaults for text and for vision."""

TILE, GAP, LINE, FONT_SIZE = 300, 12, 19, 14
"""Of the contact sheet, in pixels."""

QUESTION_LINES = 3
"""Of the contact sheet, at most."""


@dataclass(frozen=True)
class Sampled:
    """One kept record of the sample, and what the audit found."""

    example: Example
    findings: list[Finding]


def sample_places(total: int, count: int, seed: int) -> set[int]:
    """Which of the `total` source records to show, by their place in the order of the run."""
    return set(np.random.default_rng(seed).choice(total, size=min(count, total), replace=False).tolist())


def sample_note(row: int, findings: Iterable[Finding]) -> dict[str, Any]:
    """What a shard's note keeps of a sampled record: its row in the shard, and its findings."""
    return {"row": row, "findings": [[finding.code, finding.detail] for finding in findings]}


def write_sample(
    output: Path,
    places: Iterable[tuple[Path, Sequence[Mapping[str, Any]]]],
    rejected: Iterable[Mapping[str, Any]],
    title: str,
) -> None:
    """Write the page of sampled records, and a contact sheet where they have images.

    Args:
        places: Each shard's file, and what `sample_note` gave for its sampled rows.
        rejected: Entries of rejected.jsonl, of which the first are shown.
    """
    sampled = [record for file, wanted in places for record in _read(file, wanted)]
    if any(record.example["images"] for record in sampled):
        sheet = contact_sheet([record.example for record in sampled if record.example["images"]])
        write_atomically(output / SHEET_FILE, png_file(sheet))
    write_atomically(output / PAGE_FILE, sample_page(sampled, list(islice(rejected, REJECTED_SHOWN)), title))


def _read(file: Path, wanted: Sequence[Mapping[str, Any]]) -> Iterable[Sampled]:
    """The sampled rows of one shard, a row group in memory at a time."""
    import pyarrow.parquet as pq

    if not wanted:
        return
    table = pq.ParquetFile(file)
    start = 0
    for group in range(table.num_row_groups):
        length = table.metadata.row_group(group).num_rows
        mine = [note for note in wanted if start <= note["row"] < start + length]
        rows = table.read_row_group(group) if mine else None
        for note in mine:
            assert rows is not None
            row = rows.slice(note["row"] - start, 1).to_pylist()[0]
            row["images"] = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"]]
            yield Sampled(row, [Finding(*finding) for finding in note["findings"]])
        start += length


def sample_page(sampled: Sequence[Sampled], rejected: Sequence[Mapping[str, Any]], title: str) -> str:
    """The whole page. `rejected` are entries of rejected.jsonl."""
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["cut"] = _cut
    template = page.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, records=[_shown(record) for record in sampled], rejected=rejected)


def _shown(record: Sampled) -> dict[str, Any]:
    """What the template says of one record."""
    example = record.example
    plain = VARIANTS["none"].render(example)
    shown, missing = [], []
    for name, variant in VARIANTS.items():
        if name == "none":
            continue
        if reason := variant.missing(example):
            missing.append(f"{name} ({reason})")
            continue
        rendered = variant.render(example)
        changed = [new for new, old in zip(rendered.images, plain.images, strict=False) if new is not old]
        shown.append(
            {
                "name": name,
                "opened": name in OPENED,
                "images": [_embedded(resized(image, SMALL)) for image in changed[:MAX_IMAGES]],
                "messages": [] if rendered.messages == plain.messages else rendered.messages[-1:],
            }
        )
    numbers = range(min(len(example["images"]), MAX_IMAGES))
    return {
        "example": example,
        "question": _question(example)[:QUESTION_SHOWN],
        "thumbnail": _embedded(with_boxes(example, 0, THUMBNAIL)) if example["images"] else None,
        "messages": plain.messages,
        "images": [_embedded(with_boxes(example, number, LARGE)) for number in numbers],
        "boxes": example["privileged"]["boxes"],
        "findings": record.findings,
        "variants": shown,
        "missing": missing,
    }


def _cut(text: str) -> str:
    cut = f"\n… and {len(text) - MAX_TEXT} more characters" if len(text) > MAX_TEXT else ""
    return text[:MAX_TEXT] + cut


def _embedded(image: Image.Image) -> dict[str, Any]:
    """An image that stands in the page itself."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"width": image.width, "height": image.height, "address": f"data:image/jpeg;base64,{data}"}


def contact_sheet(examples: Sequence[Mapping[str, Any]]) -> Image.Image:
    """One tile for each example: its first image with its boxes, its id, its question and its answer."""
    columns = min(4, len(examples))
    font = _font()
    captions = [_caption(example, font) for example in examples]
    heights = [
        TILE + LINE * max(map(len, captions[first : first + columns])) + 2 * GAP
        for first in range(0, len(examples), columns)
    ]
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, sum(heights)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for number, (example, lines) in enumerate(zip(examples, captions, strict=True)):
        left = GAP + number % columns * (TILE + GAP)
        top = GAP + sum(heights[: number // columns])
        picture = with_boxes(example, 0, TILE)
        sheet.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
        for line, (text, colour) in enumerate(lines):
            draw.text((left, top + TILE + 4 + line * LINE), text, fill=colour, font=font)
    return sheet


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has letters for more scripts than Pillow's own font."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)


def _caption(example: Mapping[str, Any], font: Any) -> list[tuple[str, tuple[int, int, int]]]:
    """Lines below a tile, each with its colour: the id faint, then the question and the answer."""
    faint, black = (100, 100, 100), (20, 20, 20)
    absent = bytes(font.getmask("\U0010ffff"))

    def legible(text: str) -> str:
        letters = {letter for letter in text[:MAX_TEXT] if not letter.isspace()}
        lacking = any(bytes(font.getmask(letter)) == absent for letter in letters)
        return f"(no font for it here: see {PAGE_FILE})" if lacking else text

    return [
        (_fitted_end(legible(example["id"]), font), faint),
        *((line, black) for line in _in_lines(legible(_question(example)), QUESTION_LINES, font)),
        (_fitted(legible(f"answer: {example['answer']}"), font), black),
    ]


def _question(example: Mapping[str, Any]) -> str:
    """What the last user message asks, without the places of images."""
    asked = [message["content"] for message in example["prompt"] if message["role"] == "user"]
    return asked[-1].replace(IMAGE_MARKER, " ").strip() if asked else ""


def _in_lines(text: str, most: int, font: Any) -> list[str]:
    """At most so many lines, none wider than a tile, broken between words where they can be."""
    words = text[:MAX_TEXT].split()
    lines: list[str] = []
    while words and len(lines) < most - 1:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= TILE:
            line += f" {words.pop(0)}"
        if font.getlength(line) > TILE:  # one word, or a text that has no spaces
            whole = next(n for n in range(min(len(line), TILE), 0, -1) if n == 1 or font.getlength(line[:n]) <= TILE)
            line, rest = line[:whole], line[whole:]
            words = [rest, *words] if rest else words
        lines.append(line)
    return [*lines, _fitted(" ".join(words), font)] if words else lines


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
