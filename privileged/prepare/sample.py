"""Some records of a preparation to look at: which, what the audit said of them, and the files that show them.

The places are drawn from the seed before anything is read, so that a killed run shows what an undisturbed one does.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dopd_vl.common.files import write_atomically
from privileged.records.fields import Finding
from privileged.rendering.variants import VARIANTS
from privileged.schema import Example, Message

if TYPE_CHECKING:
    pass
import math

from PIL import ImageDraw, ImageFont

from privileged.rendering.drawing import COLORS, draw_boxes

SHEET_FILE, PAGE_FILE = "sample.png", "sample.html"
REJECTED_SHOWN = 12


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
    pass
    pass

    sampled = [record for file, wanted in places for record in _read(file, wanted)]
    if any(record.example["images"] for record in sampled):
        buffer = io.BytesIO()
        contact_sheet([record.example for record in sampled if record.example["images"]]).save(buffer, format="PNG")
        write_atomically(output / SHEET_FILE, buffer.getvalue())
    write_atomically(output / PAGE_FILE, sample_page(sampled, list(islice(rejected, REJECTED_SHOWN)), title))


def _read(file: Path, wanted: Sequence[Mapping[str, Any]]) -> Iterable[Sampled]:
    """The sampled rows of one shard, a row group in memory at a time."""
    import pyarrow.parquet as pq
    from PIL import Image

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


LARGE, SMALL = 440, 240
MAX_TEXT = 4000
MAX_IMAGES = 4

OPENED = ("hints", "box_label")
"""Variants whose prompt is seen at once: the defaults for text and for vision."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1d1f21; --faint: #5c6166; --line: #d9dcdf;
  --soft: #f1f3f4; --link: #0b5cad; --warn: #8a4b00; --reject: #a3131f; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e7e9ea; --faint: #a2a9b0;
  --line: #383d43; --soft: #262a2f; --link: #7fb8f5; --warn: #f0b35e; --reject: #ff8f8f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.faint, .missing { color: var(--faint); font-size: .9rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; margin: 1rem 0; }
.body { display: grid; gap: 1rem; margin-top: .75rem; }
@media (min-width: 48rem) { .body.pictured { grid-template-columns: minmax(0, 27rem) minmax(0, 1fr); } }
.body > * { min-width: 0; }
img { max-width: 100%; height: auto; display: block; border: 1px solid var(--line); margin-bottom: .5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem .75rem;
  margin: .25rem 0 .75rem; border-radius: .35rem; font: .9rem/1.45 ui-monospace, monospace; }
h3 { font-size: .95rem; margin: 0; } summary { cursor: pointer; padding: .35rem 0; }
details { border-top: 1px solid var(--line); }
ul { padding-left: 1.2rem; margin: .25rem 0 .75rem; } li { overflow-wrap: anywhere; }
.warn { color: var(--warn); } .reject { color: var(--reject); }
nav ol { columns: 15rem; column-gap: 2.5rem; padding-left: 1.75rem; font-size: .9rem; } .table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } td, th { text-align: left; vertical-align: top;
  border-top: 1px solid var(--line); padding: .4rem .6rem .4rem 0; overflow-wrap: anywhere; }
th { white-space: nowrap; } td:first-child { min-width: 6rem; }
"""


def sample_page(sampled: Sequence[Sampled], rejected: Sequence[Mapping[str, Any]], title: str) -> str:
    """The whole page. `rejected` are entries of rejected.jsonl."""
    links = "".join(
        f'<li><a href="#r{number}">{escape(record.example["id"])}</a></li>' for number, record in enumerate(sampled)
    )
    records = "".join(_record(record, number) for number, record in enumerate(sampled))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Sample of {escape(title)}</title><style>{STYLE}</style></head>
<body><header><h1>Sample of {escape(title)}</h1>
<p class="faint">{len(sampled)} records drawn by the seed, as student and teacher would see them in each variant,
with what the audit found. <a href="#rejected">Rejected records</a> stand at the end.</p>
<nav aria-label="Records"><ol>{links}</ol></nav></header>
<main>{records}
<section id="rejected"><h2>Rejected records</h2>{_rejected(rejected)}</section></main></body></html>
"""


def _record(record: Sampled, number: int) -> str:
    example = record.example
    count = len(example["images"])
    pictures = "".join(
        _image(with_boxes(example, index, LARGE), f"Image {index + 1} of {example['id']}, boxes drawn")
        for index in range(min(count, MAX_IMAGES))
    )
    if count > MAX_IMAGES:
        pictures += f'<p class="faint">and {count - MAX_IMAGES} more images</p>'
    findings = "".join(
        f'<li class="warn"><code>{escape(finding.code)}</code>: {escape(finding.detail[:600])}</li>'
        for finding in record.findings
    )
    verdict = f"<ul>{findings}</ul>" if findings else '<p class="faint">nothing found</p>'
    note = '<p class="faint">Boxes are drawn for you; the student sees the plain image.</p>' if pictures else ""
    pictured = f"<div>{pictures}{note}{_boxes(example)}</div>" if pictures else ""
    return f"""
<article id="r{number}" aria-labelledby="h{number}"><h2 id="h{number}">{escape(example["id"])}</h2>
<p class="faint">{escape(example["source"])} · task {escape(example["task"])}</p>
<div class="body{" pictured" if pictured else ""}">{pictured}<div>
<h3>The student sees</h3>{_messages(VARIANTS["none"].render(example).messages)}
<h3>Answer</h3><pre>{_text(example["answer"])}</pre>
<h3>Audit</h3>{verdict}
<h3>The teacher sees</h3>{_variants(example)}</div></div></article>"""


def _boxes(example: Mapping[str, Any]) -> str:
    boxes = example["privileged"]["boxes"]
    if not boxes:
        return ""
    items = "".join(
        f"<li>{escape(box['label'] or '(no label)')} [{', '.join(f'{value:g}' for value in box['bbox'])}]</li>"
        for box in boxes[:100]
    )
    return f"<details><summary>{len(boxes)} boxes, in pixels</summary><ul>{items}</ul></details>"


def _variants(example: Mapping[str, Any]) -> str:
    plain = VARIANTS["none"].render(example)
    shown, missing = [], []
    for name, variant in VARIANTS.items():
        if name == "none":
            continue
        if reason := variant.missing(example):
            missing.append(f"{escape(name)} ({escape(reason)})")
            continue
        rendered = variant.render(example)
        changed = [new for new, old in zip(rendered.images, plain.images, strict=True) if new is not old][:MAX_IMAGES]
        pictures = "".join(_image(resized(image, SMALL), f"{name}: changed image") for image in changed)
        text = "" if rendered.messages == plain.messages else _messages(rendered.messages[-1:])
        opened = " open" if name in OPENED else ""
        shown.append(f"<details{opened}><summary><code>{name}</code></summary>{pictures}{text}</details>")
    absent = f'<p class="missing">Not possible: {"; ".join(missing)}.</p>' if missing else ""
    return "".join(shown) + absent


def _messages(messages: Sequence[Message]) -> str:
    return "".join(
        f'<div class="faint">{escape(message["role"])}</div><pre>{_text(message["content"])}</pre>'
        for message in messages
    )


def _text(text: str) -> str:
    cut = f"\n… and {len(text) - MAX_TEXT} more characters" if len(text) > MAX_TEXT else ""
    return escape(text[:MAX_TEXT]) + cut


def _image(image: Image.Image, description: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = image.size
    return f'<img alt="{escape(description)}" width="{width}" height="{height}" src="data:image/jpeg;base64,{data}">'


def _rejected(rejected: Sequence[Mapping[str, Any]]) -> str:
    if not rejected:
        return '<p class="faint">None were rejected.</p>'
    rows = "".join(
        f"<tr><td>{escape(str(entry['id']))}</td><td>{escape(str(entry['stage']))}</td>"
        f'<td class="reject">{escape(str(entry["reason"]))}</td></tr>'
        for entry in rejected
    )
    note = "The first ones; all are in rejected.jsonl."
    return (
        f'<p class="faint">{note}</p><div class="table"><table><thead><tr><th>id</th><th>stage</th><th>reason</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


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
