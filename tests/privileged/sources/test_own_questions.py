"""Questions of one's own about COCO annotations, joined by the image's file, through the real command."""

import json
from pathlib import Path
from typing import Any

import pytest
from privileged_samples import boxes_of, noise, prepare_by_command

IMAGES = ("val/1.png", "val/2.png", "a/3.png", "b/3.png")


def write(folder: Path, *questions: Any, **options: Any) -> dict[str, Any]:
    """Four pictures of 48 x 32: two cats and a dog in the first, a dog in the second, nothing in the others."""
    for number, name in enumerate(IMAGES):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed=number).save(folder / "images" / name)
    content = {
        "images": [{"id": n, "file_name": name, "width": 48, "height": 32} for n, name in enumerate(IMAGES)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 5, "bbox": [1, 2, 10, 20]},
            {"id": 2, "image_id": 0, "category_id": 5, "bbox": [20, 2, 10, 20]},
            {"id": 3, "image_id": 0, "category_id": 9, "bbox": [30, 2, 10, 20]},
            {"id": 4, "image_id": 1, "category_id": 9, "bbox": [1, 2, 10, 20]},
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    lines = [question if isinstance(question, str) else json.dumps(question) for question in questions]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    given = {"annotations": "instances.json", "images": "images", "questions_file": "questions.jsonl", **options}
    return {"card": "coco-questions", "options": given, "default_task": "exact"}


def ask(image: Any, **changes: Any) -> dict[str, Any]:
    return {"image": image, "question": "Who is there?", "answer": "nobody", **changes}


def test_questions_are_joined_with_the_boxes_of_their_image(tmp_path: Path) -> None:
    questions = [
        ask("val/1.png", answer="a cat"),
        ask(
            "1.png",
            id="mine",
            question="How many cats?",
            labels=["cat"],
            task="number",
            answer=2,
            **{"privileged.hints": ["Look left."]},
        ),
        ask(["somewhere/val/2.png"], privileged={"caption": "A dog."}),
        ask("a/3.png"),
        ask("val/2.png", labels=["cat"], question="Where is the cat?"),
    ]
    done = prepare_by_command(tmp_path, write(tmp_path, *questions))
    assert (done.code, done.rejected) == (0, {}), done.told
    dog = ("dog", [30, 2, 40, 22])
    cats = [("cat", [1, 2, 11, 22]), ("cat", [20, 2, 30, 22])]
    assert {name: boxes_of(row) for name, row in done.rows.items()} == {
        "instances-0-q0": [*cats, dog],
        "mine": cats,
        "instances-1-q2": [("dog", [1, 2, 11, 22])],
        "instances-2-q3": [],
        "instances-1-q4": [],
    }
    mine = done.rows["mine"]
    assert (mine["answer"], mine["task"], mine["privileged"]["hints"]) == ("2", "number", ["Look left."])
    assert done.rows["instances-1-q2"]["privileged"]["caption"] == "A dog."
    assert done.rows["instances-0-q0"]["prompt"][0]["content"] == questions[0]["question"]
    picture = done.rows["instances-2-q3"]["images"][0]["bytes"]
    assert picture == (tmp_path / "images" / "a" / "3.png").read_bytes()
    assert done.found == {"image_without_objects": 2, "no_privilege": 2}


def test_templates_are_asked_beside_them_where_they_are_given(tmp_path: Path) -> None:
    count = {"question": "How many {label}?", "answer": "{count}", "task": "number"}
    source = write(tmp_path, ask("1.png", answer="a cat"), questions=[count])
    done = prepare_by_command(tmp_path, source)
    assert [row["answer"] for row in done.rows.values()] == ["2", "1", "1", "a cat"]


def test_other_names_are_mapped_and_a_changed_file_is_another_source(tmp_path: Path) -> None:
    source = write(tmp_path, {"file": "1.png", "q": "Who?", "a": "a cat"})
    source["options"]["columns"] = {"images": "file", "prompt": "q", "answer": "a"}
    assert [row["answer"] for row in prepare_by_command(tmp_path, source).rows.values()] == ["a cat"]
    (tmp_path / "questions.jsonl").write_text('{"file": "1.png", "q": "Who?", "a": "a dog"}\n')
    assert "was prepared from other settings or another source" in prepare_by_command(tmp_path, source).told


BAD: list[tuple[Any, str]] = [
    ("{", "line 1 of questions.jsonl is no JSON"),
    (ask("9.png"), "instances.json has no image of the file '9.png'"),
    (ask("3.png"), "instances.json has 2 images of the file '3.png'"),
    (ask("c/1.png"), "instances.json has no image of the file 'c/1.png'"),
    (ask("../images/val/1.png\0"), "has no image of the file"),
    (ask(""), "has no image of the file ''"),
    (ask(None), "images must name one image of instances.json, not None"),
    (ask(["1.png", "2.png"]), "images must name one image of instances.json"),
    (ask(7), "images must name one image of instances.json, not 7"),
    (ask("1.png", labels=["cta"]), "labels holds 'cta'; did you mean 'cat'?"),
    (ask("1.png", labels="cat"), "labels must be a list, not str"),
    (ask("1.png", labels=[["cat"]]), "labels holds ['cat']"),
    (ask("1.png", **{"privileged.boxes": [{"label": "cat", "bbox": [1, 2, 3, 4]}]}), "brings boxes of its own"),
    (ask("1.png", privileged={"boxes": [{"label": "cat", "bbox": [1, 2, 3, 4]}]}), "brings boxes of its own"),
    (ask("1.png", answer=None), "answer is missing"),
]


def test_what_cannot_be_joined_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    done = prepare_by_command(tmp_path, write(tmp_path, *(question for question, _ in BAD), ask("1.png")))
    assert done.code == 0, done.told
    assert list(done.rows) == [f"instances-0-q{len(BAD)}"]
    for reason, (_, wanted) in zip(done.rejected.values(), BAD, strict=True):
        assert wanted in reason


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"questions_file": "nowhere.jsonl"}, "source.options.questions_file: no file 'nowhere.jsonl'"),
        ({"questions_file": None}, "source.options.columns: are those of questions_file, which is not set"),
        ({"columns": {"prompt": "qestion"}}, "options.columns.prompt: the data has no column 'qestion'; did you mean"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    done = prepare_by_command(tmp_path, write(tmp_path, ask("1.png"), **options))
    assert done.code == 2
    assert told in done.told
