"""Counting questions about kinds that a picture lacks, through the real command and for every kind of boxes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, Image
from privileged_samples import boxes_of, noise, prepare_by_command

from privileged.sources.questions import Question

KINDS = ("cat", "dog", "heron", "lynx")
PICTURES = 40


def inside(number: int) -> list[str]:
    """The objects of a picture: cats in all but every fifth, a heron in every second, lynxes in two pictures."""
    given = ["cat", "cat"] if number % 5 else ["dog"]
    return given + ["heron"] * (number % 2) + ["lynx"] * (number in (6, 7))


def question(**changes: Any) -> dict[str, Any]:
    return {"question": "How many {label}?", "answer": "{count}", "task": "number", "absent": 0.25, **changes}


def write_pictures(folder: Path) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(PICTURES):
        noise(seed=number).save(folder / "images" / f"{number:02d}.png")


def coco(folder: Path) -> dict[str, Any]:
    boxes = [(number, name, place) for number in range(PICTURES) for place, name in enumerate(inside(number))]
    content = {
        "images": [{"id": number, "file_name": f"{number:02d}.png"} for number in range(PICTURES)],
        "categories": [{"id": number, "name": name} for number, name in enumerate([*KINDS, "never"])],
        "annotations": [
            {"id": key, "image_id": number, "category_id": KINDS.index(name), "bbox": [8 * place, 2, 8, 9]}
            for key, (number, name, place) in enumerate(boxes)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return {"kind": "coco", "options": {"annotations": "instances.json", "images": "images"}}


def yolo(folder: Path) -> dict[str, Any]:
    (folder / "labels").mkdir(exist_ok=True)
    for number in range(PICTURES):
        lines = [f"{KINDS.index(name)} 0.{2 + place} 0.5 0.1 0.25\n" for place, name in enumerate(inside(number))]
        (folder / "labels" / f"{number:02d}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": [*KINDS, "never"]}))
    return {"kind": "yolo", "options": {"images": "images", "labels": "labels", "names": "data.yaml"}}


def voc(folder: Path) -> dict[str, Any]:
    (folder / "xml").mkdir(exist_ok=True)
    box = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>3</ymin><xmax>{}</xmax><ymax>30</ymax></bndbox></object>"
    for number in range(PICTURES):
        objects = "".join(box.format(name, 8 * p + 2, 8 * p + 9) for p, name in enumerate(inside(number)))
        (folder / "xml" / f"{number:02d}.xml").write_text(f"<annotation>{objects}</annotation>")
    return {"kind": "voc", "options": {"images": "images", "annotations": "xml"}}


def table(folder: Path) -> dict[str, Any]:
    rows = [
        {
            "image": {"bytes": (folder / "images" / f"{number:02d}.png").read_bytes(), "path": None},
            "objects": {
                "bbox": [[8.0 * place, 2.0, 8.0 * place + 8, 9.0] for place, _ in enumerate(inside(number))],
                "category": inside(number),
            },
        }
        for number in range(PICTURES)
    ]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(str(folder / "rows.parquet"))
    columns = {"images": "image", "privileged.boxes": "objects"}
    return {"kind": "dataset", "options": {"path": "rows.parquet", "columns": columns}}


def asked_of(rows: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str, list[str]]]:
    """By id: the kind that is asked for, the answer, and the labels that are shown."""
    return {
        name: (row["prompt"][-1]["content"][9:-1], row["answer"], sorted(label for label, _ in boxes_of(row)))
        for name, row in rows.items()
    }


@pytest.mark.parametrize("write", [coco, yolo, voc, table])
def test_the_stated_share_asks_for_kinds_that_are_not_there(tmp_path: Path, write: Any) -> None:
    write_pictures(tmp_path)
    source = write(tmp_path)
    found = {}
    for output, changes in (("a", {}), ("again", {}), ("other", {"seed": 1}), ("none", {"absent": 0.0})):
        source["options"]["questions"] = [question(**changes)]
        done = prepare_by_command(tmp_path, source, output=output)
        assert (done.code, done.rejected) == (0, {}), done.told
        found[output] = asked_of(done.rows)
    absent = {name: told for name, told in found["a"].items() if told[1] == "0"}
    assert found["none"] == {name: told for name, told in found["a"].items() if told[1] != "0"}
    assert found["a"] == found["again"]
    assert absent.keys() != {name for name, told in found["other"].items() if told[1] == "0"}
    assert 0.2 < len(absent) / len(found["a"]) < 0.3
    shown = [labels for _, _, labels in found["none"].values()]
    for kind, _, labels in absent.values():
        assert kind in KINDS, "a kind that no picture has is no question of this set"
        assert labels, "the teacher is shown all that is there"
        assert kind not in labels
    assert all(len(set(labels)) == 1 for labels in shown)


def test_nothing_absent_is_asked_of_a_picture_of_which_not_everything_is_known(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    source = coco(tmp_path)
    source["options"]["questions"] = [question(absent=0.5)]
    content = json.loads((tmp_path / "instances.json").read_text())
    lynx, heron, dog = (KINDS.index(name) for name in ("lynx", "heron", "dog"))
    content["annotations"].append({"id": 900, "image_id": 1, "category_id": lynx, "bbox": [1, 2, 9, 9], "iscrowd": 1})
    content["images"][3]["not_exhaustive_category_ids"] = [heron]
    content["images"][2]["neg_category_ids"] = [dog]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    done = prepare_by_command(tmp_path, source)
    kinds: dict[str, list[str]] = {}
    for name, (kind, answer, _) in asked_of(done.rows).items():
        if answer == "0":
            kinds.setdefault(name.split("-")[1], []).append(kind)
    assert "1" not in kinds
    assert "3" not in kinds
    assert kinds["2"] == ["dog"]
    assert done.found["crowd_left_out"] == 2


@pytest.mark.parametrize("changes", [{"absent": 1.0}, {"absent": -0.1}, {"per": "image", "question": "How many?"}])
def test_a_share_that_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_pictures(tmp_path)
    source = coco(tmp_path)
    source["options"]["questions"] = [{**question(**changes), "answer": "2"}]
    done = prepare_by_command(tmp_path, source)
    assert done.code == 2
    assert "source.options.questions[0].absent: " in done.told


def test_kinds_are_drawn_as_often_as_pictures_have_them() -> None:
    asked = Question("a", "b", absent=0.5)
    drawn = [kind for n in range(300) for kind in asked.absent_from(["cat"], {"cat": 9, "dog": 8, "lynx": 2}, str(n))]
    assert len(drawn) == 300
    assert 0.7 < drawn.count("dog") / 300 < 0.9
    assert asked.absent_from(["cat"], {"cat": 9}, "1") == []
