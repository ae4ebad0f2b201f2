"""Exports of Label Studio through the real command: right boxes, or a task that is set aside with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from privileged_samples import boxes_of, noise, prepare_by_command

COUNT = {"question": "How many {label}?", "answer": "{count}", "task": "number"}


def rectangle(*labels: str, x: float = 25, y: float = 12.5, **changes: Any) -> dict[str, Any]:
    """A result on a picture of 48 x 32; its box is [12, 4, 24, 20] unless it is changed."""
    value = {"x": x, "y": y, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": list(labels)}
    return {
        "id": f"region-{x}-{y}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 48,
        "original_height": 32,
        "image_rotation": 0,
        "value": {**value, **changes.pop("value", {})},
        **changes,
    }


def task(number: int, *results: Any, image: Any = None, **changes: Any) -> dict[str, Any]:
    annotation = {"id": 100 + number, "completed_by": 1, "was_cancelled": False, "ground_truth": False}
    return {
        "id": number,
        "data": {"image": image or f"/data/upload/1/{number}.png"},
        "annotations": [{**annotation, "result": list(results)}],
        "predictions": [{"result": [rectangle("ghost")]}],
        **changes,
    }


def export(folder: Path, *tasks: Any, **options: Any) -> dict[str, Any]:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(1, 9):
        noise(seed=number).save(folder / "images" / f"{number}.png")
    (folder / "export.json").write_text(json.dumps(tasks))
    given = {"export": "export.json", "images": "images", "questions": [COUNT], **options}
    return {"kind": "label-studio", "options": given}


def test_rectangles_are_boxes_in_pixels(tmp_path: Path) -> None:
    cats = (rectangle("cat"), rectangle("cat", x=0, y=0), rectangle("dog", x=75))
    extra = [{"type": "choices", "value": {"choices": ["day"]}}, {"type": "relation", "from_id": "a", "to_id": "b"}]
    source = export(tmp_path, task(1, *cats, *extra), task(2), task(3, rectangle("cat", "dog")))
    done = prepare_by_command(tmp_path, source)
    assert (done.code, done.rejected) == (0, {}), done.told
    answers = {name: row["answer"] for name, row in done.rows.items()}
    assert answers == {"1-cat-0": "2", "1-dog-0": "1", "3-cat-0": "1", "3-dog-0": "1"}
    assert boxes_of(done.rows["1-cat-0"]) == [("cat", [12, 4, 24, 20]), ("cat", [0, 0, 12, 16])]
    assert done.found == {"image_without_objects": 1}


def test_the_card_asks_for_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    tasks = [task(number, rectangle(("cat", "dog")[number % 2])) for number in range(1, 9)]
    export(tmp_path, *tasks)
    source = {"card": "label-studio", "options": {"export": "export.json", "images": "images"}}
    done = prepare_by_command(tmp_path, source)
    assert (done.code, done.rejected) == (0, {}), done.told
    assert {row["answer"] for row in done.rows.values()} == {"0", "1"}


def test_a_turned_box_is_the_upright_one_around_it(tmp_path: Path) -> None:
    # 12 x 16 pixels at (24, 8), turned by a quarter about that corner: 16 to its left, 12 down.
    turned = rectangle("cat", x=50, y=25, value={"rotation": 90})
    done = prepare_by_command(
        tmp_path, export(tmp_path, task(1, turned), task(2, rectangle("cat", value={"rotation": 360})))
    )
    [(label, box)] = boxes_of(done.rows["1-cat-0"])
    assert (label, box) == ("cat", pytest.approx([8, 8, 24, 20]))
    assert boxes_of(done.rows["2-cat-0"]) == [("cat", [12, 4, 24, 20])]
    assert done.found == {"box_turned": 1}


def test_a_label_in_a_result_of_its_own_belongs_to_the_region(tmp_path: Path) -> None:
    box = rectangle()
    bare = {**box, "type": "rectangle", "value": {k: v for k, v in box["value"].items() if k != "rectanglelabels"}}
    named = {**bare, "type": "labels", "value": {**bare["value"], "labels": ["cat"]}}
    done = prepare_by_command(tmp_path, export(tmp_path, task(1, bare, named), task(2, bare)))
    assert boxes_of(done.rows["1-cat-0"]) == [("cat", [12, 4, 24, 20])]
    assert ["a box without a label" in reason for reason in done.rejected.values()] == [True]


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/local-files/?d=photos%2F2024%2Fa%20cat.png", "2024/a cat.png"),
        ("/data/local-files/?d=images/2024/a cat.png", "2024/a cat.png"),
        ("/data/upload/3/0fa1b2c3-a_cat.png", "a_cat.png"),
        ("http://localhost:8080/data/upload/3/0fa1b2c3-kept.png", "0fa1b2c3-kept.png"),
        ("https://example.org/x/a%20cat.png?sig=1#top", "a cat.png"),
        ("s3://bucket/2024/a cat.png", "2024/a cat.png"),
        ("a_cat.png", "a_cat.png"),
        ("D:\\photos\\a_cat.png", "a_cat.png"),
        ("odd?name#1.png", "odd?name#1.png"),
    ],
)
def test_the_picture_is_found_by_its_address(tmp_path: Path, address: str, file: str) -> None:
    source = export(tmp_path, task(1, rectangle("cat"), image=address))
    (tmp_path / "images" / "2024").mkdir()
    for seed, name in enumerate(["a cat.png", "2024/a cat.png", "a_cat.png", "0fa1b2c3-kept.png", "odd?name#1.png"]):
        noise(seed=20 + seed).save(tmp_path / "images" / name)
    done = prepare_by_command(tmp_path, source)
    assert done.code == 0, (done.told, done.rejected)
    assert done.rows["1-cat-0"]["images"][0]["bytes"] == (tmp_path / "images" / file).read_bytes()


def several(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Annotations of a task, each of so many cats as its number among them, from 1."""
    boxes = [rectangle("cat", x=10 * place) for place in range(len(changes))]
    return [{"id": 9 - n, "result": boxes[: n + 1], **change} for n, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("changes", "option", "answer"),
    [
        ([{}, {"was_cancelled": True}], "refuse", "1"),
        ([{}, {}, {"ground_truth": True}], "refuse", "3"),
        ([{}, {}], "refuse", None),
        ([{"ground_truth": True}, {"ground_truth": True}], "refuse", None),
        ([{}, {}, {"was_cancelled": True}], "first", "2"),
        ([{}, {}, {"was_cancelled": True}], "last", "1"),
        ([{}, {"id": None}], "last", None),
    ],
)
def test_of_several_annotators_one_is_taken_only_where_it_is_said_which(
    tmp_path: Path, changes: list[dict[str, Any]], option: str, answer: str | None
) -> None:
    tasks = task(1, annotations=several(*changes)), task(2, rectangle("dog"))
    done = prepare_by_command(tmp_path, export(tmp_path, *tasks, several=option))
    assert {name: row["answer"] for name, row in done.rows.items() if name != "2-dog-0"} == (
        {} if answer is None else {"1-cat-0": answer}
    )
    assert len(done.rejected) == (answer is None)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"annotations": None}, "export as JSON, not JSON-MIN"),
    ({"annotations": [{"result": "none"}]}, "export as JSON, not JSON-MIN"),
    ({"data": {"image": ["1.png", "2.png"]}}, "data.image must be the address of one picture"),
    ({"data": None}, "data.image must be the address of one picture"),
    ({"data": {"image": "../export.json"}}, "no picture 'export.json'"),
    ({"data": {"image": "/data/local-files/?d="}}, "no picture ''"),
    ({"data": {"image": "http://[bad/1\0.png"}}, "no picture"),
    ({"data": {"image": f"/{'x' * 5000}.png"}}, "no picture"),
    ({"data": {"image": "data:image/png;base64,AAAA"}}, "is written into the export"),
]
BAD_RESULTS: list[tuple[Any, str]] = [
    ("box", "result[0] must be a mapping"),
    ({"type": "polygonlabels", "value": {"points": [[0, 0]], "polygonlabels": ["cat"]}}, "'polygonlabels', and no box"),
    ({"type": ["rectanglelabels"], "value": {}}, "and no box"),
    (rectangle(), "has no list of labels, but []"),
    (rectangle("cat", value={"rectanglelabels": [7]}), "has no list of labels"),
    (rectangle("cat", value={"x": "25"}), "no usable number"),
    (rectangle("cat", value={"width": -3}), "a size that is not positive"),
    (rectangle("cat", value={"x": float("nan")}), "no usable number"),
    (rectangle("cat", value={"rotation": "left"}), "no usable number"),
    (rectangle("cat", original_width=None), "no usable number"),
    (rectangle("cat", original_width=480), "but was annotated as 480 x 32"),
    (rectangle("cat", image_rotation=90), "while the picture was turned by 90 degrees"),
]


def test_what_cannot_be_read_rightly_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    tasks: list[Any] = [task(number % 8 + 1, rectangle("cat"), **change) for number, (change, _) in enumerate(BAD)]
    tasks += [task(number % 8 + 1, result, id=f"r{number}") for number, (result, _) in enumerate(BAD_RESULTS)]
    two = task(1, rectangle("cat"), rectangle("cat", x=0, original_width=47), id="two")
    tasks += [two, 7, task(3, rectangle("cat"), id="good")]
    done = prepare_by_command(tmp_path, export(tmp_path, *tasks))
    assert done.code == 0, done.told
    assert list(done.rows) == ["good-cat-0"]
    wanted = [reason for _, reason in [*BAD, *BAD_RESULTS]]
    wanted += ["pictures of several sizes", f"entry {len(tasks) - 1} of export.json is a int"]
    for reason, part in zip(done.rejected.values(), wanted, strict=True):
        assert part in reason


def test_two_addresses_of_one_file_are_told_apart_by_nothing(tmp_path: Path) -> None:
    tasks = [task(n, rectangle("cat"), image=f"https://example.org/{n}/5.png") for n in (1, 2)]
    done = prepare_by_command(tmp_path, export(tmp_path, *tasks, task(3, rectangle("cat"))))
    assert list(done.rows) == ["3-cat-0"]
    assert all("lead to one file, 5.png" in reason for reason in done.rejected.values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image": "imag"}, "source.options.image: the data has no column 'data.imag'; did you mean 'data.image'?"),
        ({"several": "both"}, "source.options.several: 'both' is unknown"),
        ({"export": "nowhere.json"}, "source.options.export: no file"),
        ({"questions": []}, "give at least one question"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    done = prepare_by_command(tmp_path, export(tmp_path, task(1, rectangle("cat")), **options))
    assert done.code == 2
    assert told in done.told
