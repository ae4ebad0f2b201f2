"""The HTML page of sampled records: one file, no network, no scripts; everything from the data is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image

from .contact_sheet import resized, with_boxes
from .schema import Message
from .variants import VARIANTS

if TYPE_CHECKING:
    from .sample import Sampled

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
