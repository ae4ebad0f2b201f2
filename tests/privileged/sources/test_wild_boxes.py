"""Annotated pictures as people have them, through the real command: right records, or a refusal that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from privileged_samples import boxes_of, noise, prepare_by_command

COUNT = {"question": "How many {label}?", "answer": "{count}", "task": "number"}
TOTAL = {"question": "How many in all?", "answer": "{total}", "task": "number", "per": "image"}
TURNED = {"exif": Image.Exif()}
TURNED["exif"][0x0112] = 6


def coco(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two pictures of 48 x 32, with two cats and one dog in the first and a dog in the second."""
    (folder / "images").mkdir(exist_ok=True)
    for number in (1, 2):
        noise(seed=number).save(folder / "images" / f"{number}.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 1, "category_id": 5, "bbox": [20, 2, 10, 20]},
            {"id": 3, "image_id": 1, "category_id": 9, "bbox": [30, 2, 10, 20]},
            {"id": 4, "image_id": 2, "category_id": 9, "bbox": [1, 2, 10, 20]},
        ],
        **changes,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return {"kind": "coco", "options": {"annotations": "instances.json", "images": "images", "questions": [COUNT]}}


def answers(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Question and picture -> answer."""
    return {name: row["answer"] for name, row in rows.items()}


@pytest.mark.parametrize("spelling", [float, str, lambda number: f"{number}.0"])
def test_ids_of_coco_are_the_same_in_any_spelling(tmp_path: Path, spelling: Any) -> None:
    source = coco(
        tmp_path,
        images=[{"id": spelling(1), "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
        categories=[{"id": 5, "name": "cat"}, {"id": spelling(9), "name": "dog"}],
    )
    done = prepare_by_command(tmp_path, source)
    assert answers(done.rows) == {"instances-1-5-0": "2", "instances-1-9-0": "1", "instances-2-9-0": "1"}
    assert boxes_of(done.rows["instances-1-9-0"]) == [("dog", [30, 2, 40, 22])]
    assert done.rejected == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": [{"id": 1, "file_name": "1.png"}, {"file_name": "2.png"}]}, "images[1] has no id"),
        ({"images": [{"id": 1, "file_name": "1.png"}, {"id": True, "file_name": "2.png"}]}, "images[1] has no id"),
        (
            {"images": [{"id": 1, "file_name": "1.png"}, {"id": 1.0, "file_name": "2.png"}]},
            "images[0] and images[1] have the same id 1",
        ),
        (
            {"images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "1.png"}]},
            "images[0] and images[1] have the same file_name '1.png'",
        ),
        ({"categories": [{"name": "cat"}]}, "categories[0] has no id"),
        (
            {"categories": [{"id": 5, "name": "cat"}, {"id": "5", "name": "dog"}]},
            "categories[0] and categories[1] have the same id 5",
        ),
        ({"categories": [{"id": 5, "name": None}]}, "the category of id 5 has no name"),
        (
            {"annotations": [{"id": 7, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}] * 2},
            "annotations[0] and annotations[1] have the same id 7",
        ),
    ],
)
def test_a_coco_file_whose_ids_are_missing_or_doubled_is_refused_by_its_entries(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    done = prepare_by_command(tmp_path, coco(tmp_path, **changes))
    assert done.code == 2
    assert "instances.json" in done.told
    assert told in done.told


def test_categories_of_one_name_are_one_and_that_is_said(tmp_path: Path) -> None:
    done = prepare_by_command(
        tmp_path, coco(tmp_path, categories=[{"id": 5, "name": "cat"}, {"id": 9, "name": " cat "}])
    )
    assert answers(done.rows) == {"instances-1-5-0": "3", "instances-2-5-0": "1"}
    assert done.found["categories_merged"] == 1
    assert "1 categories_merged" in done.told
    assert "| categories_merged | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_what_coco_leaves_out_is_counted_and_no_total_is_short(tmp_path: Path) -> None:
    source = coco(
        tmp_path,
        images=[{"id": number, "file_name": f"{number}.png"} for number in (1, 2, 3)],
        annotations=[
            {"image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 20], "iscrowd": 1},
            {"image_id": 1, "category_id": 9, "bbox": [1, 2, 10, 20]},
            {"image_id": 2, "category_id": 9, "bbox": [1, 2, 10, 20]},
            {"image_id": 2, "category_id": 77, "bbox": [20, 2, 10, 20]},
        ],
    )
    source["options"]["questions"] = [COUNT, TOTAL]
    done = prepare_by_command(tmp_path, source)
    assert answers(done.rows) == {"instances-1-9-0": "1", "instances-2-9-0": "1"}
    assert (done.found["crowd_left_out"], done.found["image_without_objects"]) == (1, 1)
    (reason,) = done.rejected.values()
    assert "annotations[3] of instances.json: no such image 2 or category 77" in reason


def folders(folder: Path, kind: str, files: dict[str, str], names: str = "names: [cat, dog]") -> dict[str, Any]:
    """A picture of 48 x 32 for each annotation file; the source of kind yolo or voc."""
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for seed, (name, content) in enumerate(files.items()):
        noise(seed=seed).save(folder / "images" / Path(name).with_suffix(".png").name)
        (folder / "labels" / name).write_text(content)
    (folder / "data.yaml").write_text(names)
    options: dict[str, Any] = {"images": "images", "questions": [COUNT]}
    options |= {"labels": "labels", "names": "data.yaml"} if kind == "yolo" else {"annotations": "labels"}
    return {"kind": kind, "options": options}


BOX = "0 0.5 0.5 0.25 0.5"
"""Of 48 x 32 pixels: 18, 8, 30, 24."""


@pytest.mark.parametrize(("shape", "points"), [("[3, 2]", "0.1 0.1 0.9 0.9 0 0"), ("[2, 3]", "0.1 0.1 2 0.9 0.9 1")])
def test_keypoints_do_not_widen_the_box(tmp_path: Path, shape: str, points: str) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": f"{BOX} {points}"}, f"kpt_shape: {shape}\nnames: [person]")
    done = prepare_by_command(tmp_path, source)
    assert boxes_of(done.rows["images-a-person-0"]) == [("person", [18, 8, 30, 24])]


@pytest.mark.parametrize(
    ("names", "line", "told"),
    [
        ("kpt_shape: [17, 3]\nnames: [cat]", f"{BOX} 0.1 0.1 2", "has 7 values, but kpt_shape makes it 55"),
        ("names: [cat]", f"{BOX} 0.1 0.1 2 0.2 0.2 2 0.3 0.3 0", "keypoints need kpt_shape"),
        ("names: [cat]", f"{BOX} 0.1 0.1 2 0.2 0.2 2", "no share of the image"),
        ("names: [cat]", "0 24 16 12 16", "no share of the image"),
    ],
)
def test_a_line_of_another_form_is_refused_with_its_file(tmp_path: Path, names: str, line: str, told: str) -> None:
    done = prepare_by_command(tmp_path, folders(tmp_path, "yolo", {"a.txt": BOX, "b.txt": line}, names))
    assert list(done.rows) == ["images-a-cat-0"]
    assert told in done.rejected["b.png"]
    assert "b.txt of b.png" in done.rejected["b.png"]


def test_class_names_are_as_written_whatever_yaml_makes_of_them(tmp_path: Path) -> None:
    written = ["no", "on", "007", "null", "1.50", "2026-01-01", "~"]
    lines = "\n".join(f"{number} 0.5 0.5 0.2 0.2" for number in range(len(written)))
    done = prepare_by_command(tmp_path, folders(tmp_path, "yolo", {"a.txt": lines}, f"names: [{', '.join(written)}]"))
    assert {row["privileged"]["boxes"][0]["label"] for row in done.rows.values()} == set(written)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("names: {0: cat, 1: ''}", "class 1 of names has no name"),
        ("names: {0: cat, 00: dog}", "has the class 00 twice"),
        ("names: [cat]\nkpt_shape: [17]", "kpt_shape must be"),
    ],
)
def test_class_names_that_are_missing_or_doubled_are_refused_with_the_file(
    tmp_path: Path, names: str, told: str
) -> None:
    done = prepare_by_command(tmp_path, folders(tmp_path, "yolo", {"a.txt": BOX}, names))
    assert done.code == 2
    assert f"data.yaml: {told}" in done.told or f"data.yaml: names {told}" in done.told


def test_class_numbers_may_be_written_as_floats_and_classes_of_one_name_are_one(tmp_path: Path) -> None:
    lines = f"0.0{BOX[1:]}\n1.000000 0.2 0.2 0.1 0.1"
    done = prepare_by_command(tmp_path, folders(tmp_path, "yolo", {"a.txt": lines}, "names: [cat, cat]"))
    assert answers(done.rows) == {"images-a-cat-0": "2"}
    assert done.found["categories_merged"] == 1


VOC = """<annotation>{size}<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax>
</bndbox></object></annotation>"""
SIZE = "<size><width>{}</width><height>{}</height></size>"


@pytest.mark.parametrize(
    ("kind", "suffix", "content"), [("yolo", ".txt", BOX), ("voc", ".xml", VOC.format(size=SIZE.format(48, 32)))]
)
def test_files_that_are_left_out_are_counted(tmp_path: Path, kind: str, suffix: str, content: str) -> None:
    source = folders(tmp_path, kind, {f"a{suffix}": content, f"lonely{suffix}": content, f"empty{suffix}": ""})
    (tmp_path / "images" / "lonely.png").unlink()
    empty = {".txt": "", ".xml": "<annotation/>"}[suffix]
    (tmp_path / "labels" / f"empty{suffix}").write_text(empty)
    for name in ("deep/b.png", "c.avif"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"picture")
    noise(seed=7).save(tmp_path / "images" / "plain.ppm")
    done = prepare_by_command(tmp_path, source)
    assert list(done.rows) == ["images-a-cat-0"]
    assert done.rejected == {}
    left = {"file_skipped": 2, "annotation_without_image": 1, "image_without_objects": 2}
    assert {code: done.found[code] for code in left} == left
    examples = json.loads((tmp_path / "out" / "audit.json").read_text())["counts"]["examples"]
    assert examples["file_skipped"] == ["c.avif", "deep/b.png"]
    assert examples["image_without_objects"] == ["empty.png", "plain.ppm"]
    for code, count in left.items():
        assert f"{count} {code}" in done.told


def test_pictures_and_annotations_may_lie_in_one_folder(tmp_path: Path) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": BOX})
    (tmp_path / "labels" / "a.txt").rename(tmp_path / "images" / "a.TXT")
    source["options"]["labels"] = "images"
    done = prepare_by_command(tmp_path, source)
    assert list(done.rows) == ["images-a-cat-0"]
    assert done.found == {}, "nothing was left out"


@pytest.mark.parametrize("severity", ["reject", "ignore"])
def test_what_is_left_out_can_be_refused_or_not_looked_at(tmp_path: Path, severity: str) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": BOX})
    (tmp_path / "images" / "b.avif").write_bytes(b"picture")
    done = prepare_by_command(tmp_path, source, audit={"severity": {"file_skipped": severity}})
    assert "file_skipped" not in done.found
    assert (done.code == 2) == (severity == "reject")
    if severity == "reject":
        assert "audit.severity.file_skipped: is reject, and the source has 1: b.avif" in done.told


def test_parts_and_their_merge_count_what_the_source_left_out_once(tmp_path: Path) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": BOX, "b.txt": BOX})
    (tmp_path / "images" / "c.avif").write_bytes(b"picture")
    whole = prepare_by_command(tmp_path, source, output="whole")
    for part in ("1/2", "2/2"):
        assert prepare_by_command(tmp_path, source, part=part).code == 0
    merged = prepare_by_command(tmp_path, source, merge=True)
    assert merged.found == whole.found == {"file_skipped": 1}
    assert merged.rows == whole.rows


def test_a_source_of_nothing_says_what_it_left_out(tmp_path: Path) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": BOX})
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "a.avif")
    done = prepare_by_command(tmp_path, source)
    assert done.code == 2
    assert "holds no records (1 annotation_without_image, 1 file_skipped)" in done.told


def test_two_pictures_of_one_annotation_file_are_refused(tmp_path: Path) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": BOX, "b.txt": BOX})
    noise(seed=5).save(tmp_path / "images" / "a.jpg")
    done = prepare_by_command(tmp_path, source)
    assert list(done.rows) == ["images-b-cat-0"]
    assert set(done.rejected) == {"a.jpg", "a.png"}
    assert "a.txt of a.png: a.jpg, a.png, a.txt have one name" in done.rejected["a.png"]


def test_files_whose_names_are_no_text_are_named_all_the_same(tmp_path: Path) -> None:
    source = folders(tmp_path, "yolo", {"a.txt": BOX, "b\udcff.txt": BOX, "c\udcfe.txt": "7 0.5 0.5 0.1 0.1"})
    (tmp_path / "images" / "d\udcfd.avif").write_bytes(b"picture")
    done = prepare_by_command(tmp_path, source, sample=5)
    assert list(done.rows) == ["images-a-cat-0"]
    assert set(done.rejected) == {"images-b\\udcff-cat-0", "c\\udcfe.png"}
    assert done.found["file_skipped"] == 1


def test_a_doubled_key_is_not_quietly_the_last_one(tmp_path: Path) -> None:
    source = coco(tmp_path)
    file = tmp_path / "instances.json"
    file.write_text(file.read_text().replace('"bbox": [1, 2, 10, 20]', '"bbox": [0, 0, 1, 1], "bbox": [1, 2, 10, 20]'))
    done = prepare_by_command(tmp_path, source)
    assert done.code == 2
    assert "instances.json: the key 'bbox' stands twice" in done.told


def test_damaged_files_are_named(tmp_path: Path) -> None:
    source = folders(tmp_path, "voc", {"a.xml": "<annotation><object>", "b.xml": VOC.format(size="")})
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    noise().save(tmp_path / "images" / "c.png")
    (tmp_path / "labels" / "c.xml").write_text(VOC.format(size=""))
    done = prepare_by_command(tmp_path, source)
    assert "a.xml of a.png: is no XML" in done.rejected["a.png"]
    assert "image 0 ('b.png'): the file is no image" in done.rejected["images-b-cat-0"]


def turned(folder: Path, kind: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """A source with one picture that its file holds as 48 x 32 and its EXIF data turns to 32 x 48."""
    if kind == "coco":
        sides = {} if size is None else dict(zip(("width", "height"), size, strict=True))
        annotation = {"image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 20]}
        source = coco(folder, images=[{"id": 1, "file_name": "a.jpg", **sides}], annotations=[annotation])
    else:
        content = BOX if kind == "yolo" else VOC.format(size="" if size is None else SIZE.format(*size))
        source = folders(folder, kind, {"a.txt" if kind == "yolo" else "a.xml": content})
        (folder / "images" / "a.png").unlink()
    noise().save(folder / "images" / "a.jpg", **TURNED)
    return source


@pytest.mark.parametrize(
    ("kind", "size", "told"),
    [
        ("coco", (48, 32), "image 0 is 32 x 48, but was annotated as 48 x 32"),
        ("voc", (48, 32), "image 0 is 32 x 48, but was annotated as 48 x 32"),
        ("coco", None, "turned by its EXIF orientation 6"),
        ("voc", None, "turned by its EXIF orientation 6"),
        ("yolo", None, "turned by its EXIF orientation 6"),
        ("coco", (32, 48), None),
        ("voc", (32, 48), None),
    ],
)
def test_boxes_of_a_turned_picture_count_only_where_its_size_shows_what_they_are_of(
    tmp_path: Path, kind: str, size: tuple[int, int] | None, told: str | None
) -> None:
    done = prepare_by_command(tmp_path, turned(tmp_path, kind, size))
    if told is None:
        assert done.rejected == {}
        assert done.found["image_turned"] == len(done.rows) == 1
    else:
        (reason,) = done.rejected.values()
        assert told in reason


def test_a_picture_of_another_size_than_its_voc_file_says_is_refused(tmp_path: Path) -> None:
    files = {"a.xml": VOC.format(size=SIZE.format(96, 64)), "b.xml": VOC.format(size=SIZE.format("", "")), "c.xml": ""}
    files["c.xml"] = VOC.format(size=SIZE.format(48, 32))
    done = prepare_by_command(tmp_path, folders(tmp_path, "voc", files))
    assert "image 0 is 48 x 32, but was annotated as 96 x 64" in done.rejected["images-a-cat-0"]
    assert "image_sizes" in done.rejected["images-b-cat-0"]
    assert boxes_of(done.rows["images-c-cat-0"]) == [("cat", [0, 0, 20, 10])]
