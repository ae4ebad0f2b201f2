"""YOLO and Pascal VOC folders: boxes as supervision's loaders read them, one bad file one bad record."""

from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import yaml
from privileged_samples import noise

from dopd_vl.common.errors import ConfigurationError, ImageError, RecordError
from privileged.prepare.config import SourceConfig
from privileged.records.records import parse_record
from privileged.sources.cards import resolve_source
from privileged.sources.detection import VocSource, YoloSource
from privileged.sources.sources import SOURCES

COUNT = {"question": "How many {label}s?", "answer": "{count}", "task": "number", "hints": ["Find every {label}."]}
LIST = {"question": "Which kinds?", "answer": "{labels}", "per": "image"}
BOXES = {
    "a.png": ([[4, 2, 20, 18], [20, 6, 40, 30], [0, 0, 48, 8]], [0, 1, 0]),
    "b.jpg": ([[1, 1, 9, 9]], [1]),
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A set written by supervision itself, in both formats, with one more image that has no annotation file."""
    paths = []
    (tmp_path / "given").mkdir()
    for seed, name in enumerate(BOXES):
        noise(seed=seed).save(tmp_path / "given" / name)
        paths.append(str(tmp_path / "given" / name))
    detections = {
        path: sv.Detections(xyxy=np.array(boxes, dtype=float), class_id=np.array(classes))
        for path, (boxes, classes) in zip(paths, BOXES.values(), strict=True)
    }
    dataset = sv.DetectionDataset(classes=["cat", "dog"], images=paths, annotations=detections)
    dataset.as_yolo(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
    dataset.as_pascal_voc(annotations_directory_path=str(tmp_path / "xml"))
    noise(seed=9).save(tmp_path / "images" / "c.png")
    return tmp_path


def yolo(root: Path, **changes) -> YoloSource:
    options = {"images": str(root / "images"), "labels": str(root / "labels"), "names": str(root / "data.yaml")}
    return YoloSource({**options, "questions": [COUNT, LIST], **changes})


def voc(root: Path, **changes) -> VocSource:
    options = {"images": str(root / "images"), "annotations": str(root / "xml"), "questions": [COUNT, LIST]}
    return VocSource({**options, **changes})


@pytest.mark.parametrize("build", [yolo, voc])
def test_what_supervision_wrote_comes_back(folders: Path, build) -> None:
    source = build(folders)
    records = {
        record.id: record
        for record in (parse_record(source[n], image_root=source.image_root) for n in range(len(source)))
    }
    assert sorted(records) == ["images-a-1", "images-a-cat-0", "images-a-dog-0", "images-b-1", "images-b-dog-0"]
    cats = records["images-a-cat-0"]
    assert (cats.prompt[0]["content"], cats.answer, cats.task) == ("How many cats?", "2", "number")
    assert cats.privileged["hints"] == ["Find every cat."]
    found = [box["bbox"] for box in cats.privileged["boxes"]]
    np.testing.assert_allclose(found, [[4, 2, 20, 18], [0, 0, 48, 8]], atol=1e-3)
    assert records["images-a-1"].answer == "cat, dog"
    assert records["images-b-1"].images[0].size == noise().size


def test_the_boxes_are_those_of_supervisions_own_loaders(folders: Path) -> None:
    args = (str(folders / "images"), str(folders / "labels"), str(folders / "data.yaml"))
    for source, theirs in (
        (yolo(folders, questions=[LIST]), sv.DetectionDataset.from_yolo(*args)),
        (voc(folders, questions=[LIST]), sv.DetectionDataset.from_pascal_voc(args[0], str(folders / "xml"))),
    ):
        for number, name in enumerate(BOXES):
            record = parse_record(source[number], image_root=source.image_root, box_format="xywh_1")
            ours = [box["bbox"] for box in record.privileged["boxes"]]
            wanted = theirs.annotations[str(folders / "images" / name)].xyxy
            np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_a_bad_annotation_file_is_one_bad_record(folders: Path) -> None:
    (folders / "labels" / "c.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    (folders / "xml" / "c.xml").write_text("<annotation><object>")
    for source, message in ((yolo(folders), "class '7' is not among the 2 names"), (voc(folders), "c.png: is no XML")):
        assert len(source) == 6
        with pytest.raises(RecordError, match=message):
            source[5]
    (folders / "labels" / "c.txt").write_text("1 0.5 0.5 nan 0.1\n")
    (folders / "xml" / "c.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    for source in (yolo(folders, questions=[LIST]), voc(folders, questions=[LIST])):
        with pytest.raises(RecordError, match=r"c\.(txt|xml) of c\.png: "):
            source[2]


def test_an_xml_bomb_is_refused(folders: Path) -> None:
    entities = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]>'
    (folders / "xml" / "c.xml").write_text(f"{entities}<annotation><object><name>&y;</name></object></annotation>")
    with pytest.raises(RecordError, match="is no XML"):
        voc(folders)[5]


def test_polygons_give_their_bounding_box(folders: Path) -> None:
    (folders / "labels" / "c.txt").write_text("1 0.25 0.25 0.75 0.25 0.5 0.5\n")
    box = yolo(folders, questions=[LIST])[2]["privileged"]["boxes"][0]
    np.testing.assert_allclose(box["bbox"], [0.25, 0.25, 0.75, 0.5])


def test_the_fingerprint_follows_files_and_names(folders: Path) -> None:
    before = yolo(folders).fingerprint()
    assert yolo(folders).fingerprint() == before
    (folders / "data.yaml").write_text(yaml.safe_dump({"names": {0: "cat", 1: "fox"}}))
    renamed = yolo(folders).fingerprint()
    (folders / "labels" / "b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert len({before, renamed, yolo(folders).fingerprint()}) == 3


def test_the_source_opens_no_picture(folders: Path) -> None:
    for name in ("a.png", "b.jpg", "c.png"):
        (folders / "images" / name).write_bytes(b"no picture")
    source = yolo(folders)
    assert [source[number]["images"] for number in range(len(source))]
    with pytest.raises(ImageError):
        parse_record(source[0], image_root=source.image_root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "nowhere"}, r"source\.options\.images: no folder"),
        ({"labels": "nowhere"}, r"source\.options\.labels: no folder"),
        ({"names": "nowhere.yaml"}, r"source\.options\.names: no file"),
        ({"names": __file__}, r"source\.options\.names: .* is no YAML|has no list"),
        ({"label": "x"}, r"source\.options: unknown key 'label', did you mean 'labels'"),
        ({"questions": []}, "at least one question"),
    ],
)
def test_wrong_options_name_their_key(folders: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        yolo(folders, **changes)


@pytest.mark.parametrize("card", ["yolo", "pascal-voc"])
def test_cards_bring_a_counting_question(folders: Path, card: str) -> None:
    options = {"images": str(folders / "images")}
    options |= (
        {"labels": str(folders / "labels"), "names": str(folders / "data.yaml")}
        if card == "yolo"
        else {"annotations": str(folders / "xml")}
    )
    settings, factory = resolve_source(SourceConfig(card=card, options=options), SOURCES)
    source = factory(settings.options)
    assert source[0]["answer"] == "2"
    assert "kind 'cat'" in source[0]["prompt"]
