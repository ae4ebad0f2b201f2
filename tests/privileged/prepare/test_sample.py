"""The page and the contact sheet of sampled records."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from privileged_samples import files_of, jsonl_settings, noise
from rich.console import Console

from dopd_vl.common.errors import ConfigurationError
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare
from privileged.prepare.sample import sample_places

EVIL = '</pre><script>alert(1)</script><img src=x onerror="alert(2)">'
TEXT = [
    {"id": EVIL, "prompt": f"Say {EVIL}", "answer": EVIL, "task": "exact", "privileged": {"hints": [EVIL + "b"]}},
    {"id": "leak", "prompt": "6 x 7?", "answer": "42", "task": "number", "privileged": {"hints": ["Forty-two."]}},
    {"id": "told", "prompt": "6 x 8?", "answer": "48", "task": "number", "privileged": {"hint_summary": "It is 48."}},
    {"id": EVIL * 2, "prompt": "url", "answer": "a", "task": "exact", "images": [f"https://a/{EVIL}"]},
]


def run(config):
    return prepare(config, console=Console(file=io.StringIO()))


def text_page(folder, **changes):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, TEXT)), encoding="utf-8")
    source = SourceConfig("jsonl", {"path": str(folder / "rows.jsonl")})
    return run(PrepareConfig(source, str(folder / "out"), max_rejected_share=1.0, **changes)).output


def test_places_depend_on_the_seed_alone():
    assert sample_places(100, 10, 3) == sample_places(100, 10, 3) != sample_places(100, 10, 4)
    assert sample_places(5, 24, 0) == set(range(5))


def test_the_page_shows_prompts_findings_and_rejected_records(tmp_path):
    output = text_page(tmp_path)
    page = (output / "sample.html").read_text(encoding="utf-8")
    assert page.count("<article") == 2
    assert "<code>answer_in_hint_summary</code>" in page
    assert "Hint: It is 48." in page
    rejected = page.partition('id="rejected"')[2]
    assert "answer_in_hint" in rejected
    assert "download it into the image folder" in rejected
    assert not (output / "sample.png").exists(), "there is no image to show"


def test_what_the_data_says_is_escaped_and_nothing_comes_from_outside(tmp_path):
    page = (text_page(tmp_path) / "sample.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:image/|#)""", page)
    assert not re.search(r"<[^>]*\sonerror", page)


def test_what_stands_beside_a_picture_is_escaped_too(tmp_path):
    noise(64, 48).save(tmp_path / "a.png")
    boxes = [{"label": EVIL, "bbox": [5, 5, 20, 20]}]
    row = {"id": EVIL, "prompt": "Where?", "answer": EVIL, "task": "exact", "images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "privileged": {"boxes": boxes}}), encoding="utf-8")
    source = SourceConfig("jsonl", {"path": str(tmp_path / "rows.jsonl")}, name=EVIL)
    page = (run(PrepareConfig(source, str(tmp_path / "out"))).output / "sample.html").read_text(encoding="utf-8")
    assert page.count("<img") == page.count('src="data:image/jpeg') >= 4
    assert "1 boxes, in pixels" in page
    elements = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: elements.add((tag, *sorted(name for name, _ in attributes)))
    parser.feed(page)
    assert ("img", "alt", "height", "src", "width") in elements
    assert not {"script", "onerror"} & {name for element in elements for name in element}


def test_images_are_shown_with_their_boxes_and_each_variant(jsonl_world, tmp_path):
    output = run(jsonl_settings(jsonl_world, tmp_path / "out", sample=6)).output
    page = (output / "sample.html").read_text(encoding="utf-8")
    articles = page.split("<article")[1:]
    assert len(articles) == len(sample_places(40, 6, 0) - {7, 11, 19, 23})
    for article in articles:
        changed = ("box_drawn", "evidence_crop", "masked_crop", "zoomed", "masked", "degraded", "half_resolution")
        changed += ("augmented",)
        assert article.count('src="data:image/jpeg') == 1 + len(changed), (
            "its image with the box, and each that differs"
        )
        for name in ("final_answer", "box_label", *changed):
            assert f"<code>{name}</code>" in article
        assert "Not possible: hints (" in article
    sheet = Image.open(output / "sample.png").convert("RGB")
    assert sheet.width > 1000
    red = sum(count for count, colour in sheet.getcolors(sheet.width * sheet.height) if colour == (230, 25, 75))
    assert red > 500, "outlines are drawn"


def test_the_contact_sheet_says_what_is_asked_in_as_many_lines_as_it_takes(tmp_path):
    noise(64, 48).save(tmp_path / "a.png")

    def sheet(question, name):
        row = {"id": "a", "prompt": question, "answer": "7", "task": "number", "images": ["a.png"]}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
        source = SourceConfig("jsonl", {"path": str(tmp_path / "rows.jsonl")}, name="rows")
        output = run(PrepareConfig(source, str(tmp_path / name))).output
        (nav,) = re.findall(r"<nav.*?</nav>", (output / "sample.html").read_text(encoding="utf-8"), re.S)
        assert nav.count("<img") == 1
        assert f"<p>{question[:200]}</p>" in nav
        return Image.open(output / "sample.png").convert("RGB")

    one, other = sheet("How many jars?", "one"), sheet("How many cups?", "other")
    long = sheet("How many of the jars in the upper row " * 20, "long")
    assert one.size == other.size
    assert one.tobytes() != other.tobytes()
    assert long.height > one.height
    tall = sheet("w" * 300, "unbroken")
    assert tall.height == long.height
    margin = tall.crop((tall.width - 8, 0, tall.width, tall.height))
    assert margin.getcolors() == [(8 * tall.height, (255, 255, 255))], "nothing is wider than its tile"
    assert (
        sheet("\u56fe\u4e2d\u6709\u51e0\u4e2a\uff1f", "chinese").tobytes() == sheet("\u82f9\u679c", "apple").tobytes()
    )


def test_the_sample_is_the_same_for_other_shards_and_changes_no_row(jsonl_world, tmp_path):
    one = run(jsonl_settings(jsonl_world, tmp_path / "a" / "out", sample=8))
    two = run(jsonl_settings(jsonl_world, tmp_path / "b" / "out", sample=8, shard_size=40, workers=1))
    none = run(jsonl_settings(jsonl_world, tmp_path / "c" / "out", sample=0))
    for name in ("sample.html", "sample.png"):
        assert (one.output / name).read_bytes() == (two.output / name).read_bytes()
    assert not {"sample.html", "sample.png"} & set(files_of(none.output))
    audits = [dict(outcome.audit) for outcome in (none, one)]
    for audit in audits:
        del audit["checksum"]
        audit["digests"] = {name: digest for name, digest in audit["digests"].items() if name.startswith("data/")}
    assert audits[0] == audits[1], "the sample is no part of the dataset"
    with pytest.raises(ConfigurationError, match="sample: -1"):
        run(jsonl_settings(jsonl_world, tmp_path / "d", sample=-1))
