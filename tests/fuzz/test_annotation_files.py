"""Boxes of any numbers, and annotation files of any content: boxes in their image come out, or a reason."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from reasons import assert_one_line

from dopd_vl.common.errors import RecordError, UserError
from privileged.records.records import parse_record
from privileged.rendering.boxes import (
    BOX_FORMATS,
    GRID,
    clip,
    evidence_region,
    grounding_json,
    is_empty,
    to_grid,
    to_pixels,
)
from privileged.sources.sources import SOURCES

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
BOXES = st.lists(NUMBERS, min_size=4, max_size=4)
SIDES = st.integers(1, 5000)
QUESTIONS = [{"question": "How many {label}s?", "answer": "{count}", "task": "number"}]


@SETTINGS
@given(bbox=BOXES, box_format=st.sampled_from(BOX_FORMATS), width=SIDES, height=SIDES)
def test_boxes_of_any_numbers_stay_in_their_image_and_on_the_grid(
    bbox: list[float], box_format: str, width: int, height: int
) -> None:
    clipped = clip(to_pixels(bbox, box_format, width, height), width, height)
    assert all(0 <= value <= side for value, side in zip(clipped, (width, height) * 2, strict=True))
    assume(not is_empty(clipped))
    x1, y1, x2, y2 = to_grid(clipped, width, height)
    assert 0 <= x1 < x2 <= GRID
    assert 0 <= y1 < y2 <= GRID
    left, top, right, bottom = evidence_region([clipped], width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert left <= clipped[0]
    assert right >= math.floor(clipped[2])
    assert json.loads(grounding_json([{"label": "a", "bbox": clipped}], [(width, height)]))


def folder_of_one_image(tmp_path: Path, annotation: str, content: bytes) -> None:
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir(exist_ok=True)
    if not (tmp_path / "images" / "a.png").exists():
        Image.new("RGB", (40, 30), "red").save(tmp_path / "images" / "a.png")
    (tmp_path / "annotations" / annotation).write_bytes(content)


def records_or_reasons(kind: str, options: Mapping[str, Any]) -> int:
    """The number of sound records."""
    sound = 0
    try:
        source = SOURCES[kind](options)
    except UserError as error:
        assert_one_line(error)
        return 0
    for index in range(len(source)):
        try:
            raw = source[index]
            record = parse_record(raw, image_root=source.image_root, box_format=raw.get("box_format", "xyxy"))
        except RecordError as error:
            assert_one_line(error)
            continue
        for box in record.privileged["boxes"]:
            x1, y1, x2, y2 = box["bbox"]
            assert 0 <= x1 < x2 <= 40
            assert 0 <= y1 < y2 <= 30
        sound += 1
    return sound


def yolo_options(folder: Path) -> dict[str, Any]:
    folders = {"images": str(folder / "images"), "labels": str(folder / "annotations")}
    return {**folders, "names": str(folder / "data.yaml"), "questions": QUESTIONS}


def voc_options(folder: Path) -> dict[str, Any]:
    return {"images": str(folder / "images"), "annotations": str(folder / "annotations"), "questions": QUESTIONS}


def coco_options(folder: Path) -> dict[str, Any]:
    return {**voc_options(folder), "annotations": str(folder / "annotations" / "coco.json")}


ODD_NUMBERS = (
    st.floats().map(repr) | st.integers(-3, 60).map(str) | st.sampled_from(["1e400", "9" * 400, "٣", "²", "x"])
)
YOLO_LINES = st.lists(
    st.lists(st.sampled_from(["0", "1", "2", "²", "-1"]) | ODD_NUMBERS, max_size=9).map(" ".join), max_size=3
).map(lambda lines: "\n".join(lines).encode())


@SETTINGS
@given(content=YOLO_LINES | st.binary(max_size=30))
@example(content=b"0 nan nan nan nan")
@example(content=b"0 0.5 0.5 0.2")
@example(content=b"0 0.1 0.1 0.5 0.5 0.9 0.1")
@example(content=b"0 0.1 0.1 0.5 0.5 0.9")
@example(content=("9" * 5000).encode() + b" 0 0 1 1")
def test_any_yolo_file_gives_records_or_reasons(content: bytes, tmp_path: Path) -> None:
    folder_of_one_image(tmp_path, "a.txt", content)
    (tmp_path / "data.yaml").write_text("names: [cup, fork, '<image>']")
    records_or_reasons("yolo", yolo_options(tmp_path))


@SETTINGS
@given(
    content=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: f"names: {text}".encode("utf-8", "replace"))
)
@example(content=b"[" * 3000)
@example(content=b"names: &a [*a]")
@example(content=b"names: {\xc2\xb2: a}")
@example(content=b"names: {-1: a}")
@example(content=b"names: 2026-13-45")
@example(content=b"names: {" + b"9" * 5000 + b": a}")
def test_any_file_of_class_names_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    folder_of_one_image(tmp_path, "a.txt", b"0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_bytes(content)
    records_or_reasons("yolo", yolo_options(tmp_path))


def element(name: str, content: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return content.map(lambda text: f"<{name}>{text}</{name}>")


CORNERS = st.lists(
    st.sampled_from(["xmin", "ymin", "xmax", "ymax"]).flatmap(lambda name: element(name, ODD_NUMBERS)), max_size=5
).map("".join)
OBJECTS = st.lists(
    element("name", st.sampled_from(["cup", "", "&lt;image&gt;"])) | element("bndbox", CORNERS)
    | element("polygon", CORNERS) | element("name", CORNERS), max_size=4,
).map("".join)  # fmt: skip
WHOLE = "<object><name>cup</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
BOMB = b'<!DOCTYPE a [<!ENTITY b "xx"><!ENTITY c "&b;&b;">]><annotation><object><name>&c;</name></object></annotation>'
LINK = (
    b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><object><name>&b;</name></object></annotation>'
)


@SETTINGS
@given(content=element("annotation", element("object", OBJECTS)).map(str.encode) | st.binary(max_size=30))
@example(content=BOMB)
@example(content=LINK)
@example(content=b"<a>" * 5000)
@example(content=b"<a>" * 5000 + b"</a>" * 5000)
@example(content=b'<?xml version="1.0" encoding="nonsense"?><a/>')
def test_any_voc_file_gives_records_or_reasons(content: bytes, tmp_path: Path) -> None:
    folder_of_one_image(tmp_path, "a.xml", content)
    records_or_reasons("voc", voc_options(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "bbox", "name"]), inner),
    max_leaves=6,
)
ENTRY = {"id": st.integers(0, 2) | JSON, "image_id": st.integers(0, 2) | JSON, "category_id": st.integers(0, 2) | JSON}
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={**ENTRY, "bbox": BOXES | JSON, "name": JSON, "file_name": st.just("a.png") | JSON, "iscrowd": JSON,
                  "width": st.just(40) | JSON, "height": st.just(30) | JSON},
    ),
    max_size=3,
)  # fmt: skip
COCO = st.fixed_dictionaries(
    {"images": ENTRIES | JSON, "annotations": ENTRIES | JSON, "categories": ENTRIES | JSON}
).map(lambda whole: json.dumps(whole).encode())
ONE = {
    "images": [{"id": 0, "file_name": "a.png"}],
    "categories": [{"id": 0, "name": "cup"}],
    "annotations": [{"image_id": 0, "category_id": 0, "bbox": [1, 1, 5, 5]}],
}


@SETTINGS
@given(content=COCO | st.binary(max_size=30))
@example(content=b"[" * 20_000)
@example(content=json.dumps({**ONE, "categories": [{"id": True, "name": [1]}, {"id": 1, "name": None}]}).encode())
def test_any_coco_file_gives_records_or_reasons(content: bytes, tmp_path: Path) -> None:
    folder_of_one_image(tmp_path, "coco.json", content)
    records_or_reasons("coco", coco_options(tmp_path))


@pytest.mark.parametrize(
    ("kind", "options", "name", "content"),
    [
        ("yolo", yolo_options, "a.txt", b"0 0.5 0.5 0.2 0.2"),
        ("voc", voc_options, "a.xml", f"<annotation>{WHOLE}</annotation>".encode()),
        ("coco", coco_options, "coco.json", json.dumps(ONE).encode()),
    ],
)
def test_a_good_file_of_each_kind_gives_its_record(
    kind: str, options: Callable[[Path], dict[str, Any]], name: str, content: bytes, tmp_path: Path
) -> None:
    folder_of_one_image(tmp_path, name, content)
    (tmp_path / "data.yaml").write_text("names: [cup]")
    assert records_or_reasons(kind, options(tmp_path)) == 1


def test_no_entity_of_an_xml_file_is_resolved(tmp_path: Path) -> None:
    for content in (BOMB, LINK):
        folder_of_one_image(tmp_path, "a.xml", content)
        source = SOURCES["voc"](voc_options(tmp_path))
        with pytest.raises(RecordError, match="is no XML: EntitiesForbidden"):
            source[0]
