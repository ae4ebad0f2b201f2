"""Tables as the hub has them, through the real command: nothing kept apart is pooled, and classes have their names."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from privileged_samples import boxes_of, noise, prepare_by_command

from dopd_vl.common.errors import ConfigurationError
from privileged.sources.tables import ParquetRows


def table(name: str) -> Dataset:
    """One row."""
    return Dataset.from_list([{"id": name, "prompt": f"What is in {name}?", "answer": "1"}])


def source_of(path: str, **options: Any) -> dict[str, Any]:
    return {"kind": "dataset", "options": {"path": path, **options}, "default_task": "number"}


def test_a_single_file_or_folder_of_one_split_may_be_named_with_it(tmp_path: Path) -> None:
    write(tmp_path, "test-00000-of-00001", "train/0000")
    for path, split in (("set/test-00000-of-00001.parquet", "test"), ("set/train", "train"), ("set/train", None)):
        assert len(ParquetRows(tmp_path / path, None, split)) == 1
    with pytest.raises(ConfigurationError, match="holds no parquet file of split 'train', but of test"):
        ParquetRows(tmp_path / "set/test-00000-of-00001.parquet", None, "train")


def write(folder: Path, *files: str) -> None:
    """Parquet files of one row each, whose id is the file's path."""
    for file in files:
        path = folder / "set" / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table(file).to_parquet(str(path))


CARD = """---
configs:
- config_name: easy
  data_files: [{split: train, path: "a*"}, {split: held_out, path: b.parquet}]
- config_name: hard
  data_files: c.parquet
---
"""


@pytest.mark.parametrize(
    ("files", "card", "options", "rows"),
    [
        (["train", "test"], "", {"split": "train"}, ["train"]),
        (["data/train-00000-of-00001", "data/dev-00000-of-00001"], "", {"split": "dev"}, ["data/dev-00000-of-00001"]),
        (["math-00000-of-00001", "code-00000-of-00001"], "", {"split": "code"}, ["code-00000-of-00001"]),
        (["en/train/0000", "cn/train/0000"], "", {"config": "en"}, ["en/train/0000"]),
        (["en/train/0", "en/test/0", "cn/test/0"], "", {"config": "en", "split": "test"}, ["en/test/0"]),
        (["en/train/0", "cn/test/0"], "", {"split": "test"}, ["cn/test/0"]),
        (["part-0", "part-1"], "", {}, ["part-0", "part-1"]),
        (["a1", "a2", "b", "c"], CARD, {"config": "easy", "split": "train"}, ["a1", "a2"]),
        (["a1", "a2", "b", "c"], CARD, {"config": "hard"}, ["c"]),
    ],
)
def test_one_split_of_one_configuration_is_read(
    tmp_path: Path, files: list[str], card: str, options: dict[str, str], rows: list[str]
) -> None:
    write(tmp_path, *files)
    if card:
        (tmp_path / "set" / "README.md").write_text(card)
    done = prepare_by_command(tmp_path, source_of("set", **options))
    assert list(done.rows) == rows, done.told


@pytest.mark.parametrize(
    ("files", "card", "options", "told"),
    [
        (["train", "test"], "", {}, "options.split: set holds several, name one of them: test, train"),
        (
            ["train", "extra"],
            "",
            {},
            "options.split: set holds several, name one of them: no name (extra.parquet), train",
        ),
        (["en/train/0000", "cn/train/0000"], "", {}, "options.config: set holds several, name one of them: cn, en"),
        (["en/train/0", "en/test/0", "cn/test/0"], "", {"config": "en"}, "options.split: set holds several"),
        (["train"], "", {"split": "test"}, "holds no parquet file of split 'test', but of train"),
        (["a1", "a2", "b", "c"], CARD, {}, "options.config: set holds several, name one of them: easy, hard"),
        (
            ["a1", "a2", "b", "c"],
            CARD,
            {"config": "easy"},
            "options.split: set holds several, name one of them: held_out",
        ),
        (
            ["a1"],
            CARD.replace("a*", "../*"),
            {},
            "README.md has configs that cannot be read ('../*' leaves the folder)",
        ),
        (["a1"], "---\nconfigs: [easy]\n---\n", {}, "README.md has configs that cannot be read"),
    ],
)
def test_several_splits_or_configurations_are_never_pooled(
    tmp_path: Path, files: list[str], card: str, options: dict[str, str], told: str
) -> None:
    write(tmp_path, *files)
    if card:
        (tmp_path / "set" / "README.md").write_text(card)
    done = prepare_by_command(tmp_path, source_of("set", **options))
    assert done.code == 2
    assert told in done.told


def test_several_splits_of_a_saved_dataset_are_never_pooled(tmp_path: Path) -> None:
    DatasetDict({"train": table("a"), "test": table("b")}).save_to_disk(str(tmp_path / "set"))
    done = prepare_by_command(tmp_path, source_of("set"))
    assert (done.code, done.rows) == (2, {})
    assert "source.options.split: there are several, name one of them: train, test" in done.told
    assert list(prepare_by_command(tmp_path, source_of("set", split="test")).rows) == ["b"]


LABELS = Features(
    {
        "id": Value("string"),
        "prompt": Value("string"),
        "answer": ClassLabel(names=["cat", "dog", "fox"]),
        "image": Image(),
        "boxes": List({"label": ClassLabel(names=["nose", "ear"]), "bbox": List(Value("float32"))}),
    }
)


@pytest.mark.parametrize("saved", [True, False])
def test_numbers_of_class_labels_are_given_by_name(tmp_path: Path, saved: bool) -> None:
    rows = [
        {"id": str(answer), "prompt": "Which animal?", "answer": answer, "image": noise(seed=answer + 1),
         "boxes": [{"label": 1, "bbox": [1, 2, 10, 20]}]}
        for answer in (2, 0, -1)
    ]  # fmt: skip
    data = Dataset.from_list(rows, features=LABELS)
    data.save_to_disk(str(tmp_path / "set")) if saved else data.to_parquet(str(tmp_path / "set"))
    columns = {"images": "image", "privileged.boxes": "boxes"}
    source = {**source_of("set", columns=columns), "default_task": "exact"}
    done = prepare_by_command(tmp_path, source)
    assert {name: row["answer"] for name, row in done.rows.items()} == {"2": "fox", "0": "cat"}
    assert boxes_of(done.rows["2"]) == [("ear", [1, 2, 10, 20])]
    assert done.rejected == {"-1": "answer is missing"}, "-1 is no class"


def detection_set(folder: Path, category: Any, **changes: Any) -> None:
    """Two cats and a dog in the hub's usual layout, in a picture of 48 x 32, and a picture without any."""
    objects = {"bbox": [[1, 2, 10, 20], [20, 2, 10, 20], [30, 2, 10, 20]], "category": [0, 0, 1], "area": [200.0] * 3}
    objects = {**objects, "id": [7, 8, 9], **changes}
    empty = {key: [] for key in objects}
    rows = [
        {"image_id": number + 11, "image": noise(seed=number), "width": 48, "height": 32, "objects": found}
        for number, found in enumerate([objects, empty])
    ]
    kinds = {"bbox": List(List(Value("float32"))), "category": List(category), "area": List(Value("float32"))}
    kinds |= {"id": List(Value("int64")), "iscrowd": List(Value("bool"))}
    features = {"image_id": Value("int64"), "image": Image(), "width": Value("int32"), "height": Value("int32")}
    objects_kind = {key: kinds[key] for key in objects}
    Dataset.from_list(rows, features=Features({**features, "objects": objects_kind})).to_parquet(str(folder / "set"))


def detection_card(**options: Any) -> dict[str, Any]:
    return {"card": "hugging-face-detection", "options": {"path": "set", **options}}


@pytest.mark.parametrize(
    ("category", "options"),
    [(ClassLabel(names=["cat", "dog"]), {}), (Value("int64"), {"class_names": ["cat", "dog"]})],
)
def test_a_detection_set_of_the_hub_is_asked_about_its_objects(
    tmp_path: Path, category: Any, options: dict[str, Any]
) -> None:
    detection_set(tmp_path, category)
    done = prepare_by_command(tmp_path, detection_card(**options))
    assert {name: row["answer"] for name, row in done.rows.items()} == {"11-cat-0": "2", "11-dog-0": "1"}
    assert boxes_of(done.rows["11-cat-0"]) == [("cat", [1, 2, 11, 22]), ("cat", [20, 2, 30, 22])]
    assert done.found == {"image_without_objects": 1}


def test_a_detection_set_without_names_or_of_other_pictures_is_refused(tmp_path: Path) -> None:
    detection_set(tmp_path, Value("int64"))
    done = prepare_by_command(tmp_path, detection_card(), output="unnamed")
    assert done.rejected == {"set-row-0": done.rejected["set-row-0"]}
    assert "category 0 has no name" in done.rejected["set-row-0"]
    detection_set(tmp_path, ClassLabel(names=["cat", "dog"]))
    data = Dataset.from_parquet(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    data.map(lambda row: {"width": 96}).to_parquet(str(tmp_path / "set"))
    done = prepare_by_command(tmp_path, detection_card())
    assert "image 0 is 48 x 32, but was annotated as 96 x 32" in done.rejected["11-cat-0"]


def test_a_damaged_row_of_a_detection_set_is_one_bad_record(tmp_path: Path) -> None:
    detection_set(tmp_path, ClassLabel(names=["cat", "dog"]))
    data = pq.read_table(tmp_path / "set")
    names = json.loads(data.schema.metadata[b"huggingface"])
    names["info"]["features"]["objects"]["category"]["feature"]["names"] = ["cat"]
    pq.write_table(data.replace_schema_metadata({b"huggingface": json.dumps(names).encode()}), tmp_path / "set")
    done = prepare_by_command(tmp_path, detection_card())
    assert done.rejected == {"set-row-0": "privileged.boxes: class 1 is not among the 1 names of its ClassLabel"}


def test_a_crowd_in_a_detection_set_is_not_counted(tmp_path: Path) -> None:
    detection_set(tmp_path, ClassLabel(names=["cat", "dog"]), iscrowd=[True, False, False])
    done = prepare_by_command(tmp_path, detection_card())
    assert list(done.rows) == ["11-dog-0"]
    assert done.found["crowd_left_out"] == 1


def test_a_card_of_ones_own_maps_objects_and_truth_values(tmp_path: Path) -> None:
    card = {"kind": "jsonl", "columns": {"privileged.boxes": "objects"}, "box_format": "xywh", "task": "exact"}
    card |= dict.fromkeys(("title", "homepage", "licence", "found_in", "schema_checked"), "own")
    names = {"column": "privileged.boxes", "do": "objects", "names": ["cat", "dog"]}
    card["transforms"] = [names, {"column": "answer", "do": "yes_no"}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(card))
    noise().save(tmp_path / "a.png")
    objects = {"bbox": [[1, 2, 10, 20]], "category": [1], "area": [200], "id": [1]}
    rows = [
        {"id": str(answer), "prompt": f"Is it {answer}?", "answer": answer, "images": "a.png", "objects": objects}
        for answer in (True, False, None)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = prepare_by_command(tmp_path, {"card": "own.yaml", "options": {"path": "a.jsonl"}})
    assert {name: row["answer"] for name, row in done.rows.items()} == {"True": "yes", "False": "no"}
    assert boxes_of(done.rows["True"]) == [("dog", [1, 2, 11, 22])]
    assert list(done.rejected.values()) == ["answer: yes_no: needs true or false, not None"]


def test_no_prepared_folder_is_served_another_ones_rows_from_the_cache(tmp_path: Path) -> None:
    def loaded(parent: str, answer: str) -> list[str]:
        folder = tmp_path / parent
        folder.mkdir(exist_ok=True)
        row = {"prompt": "1 + 1?", "answer": answer, "task": "number"}
        (folder / "a.jsonl").write_text(json.dumps(row))
        source = {"kind": "jsonl", "options": {"path": "a.jsonl"}}
        assert prepare_by_command(folder, source, overwrite=True).code == 0
        return list(load_dataset(str(folder / "out"), split="train", cache_dir=str(tmp_path / "cache"))["answer"])

    assert loaded("one", "2") == ["2"]
    assert loaded("other", "3") == ["3"], "a folder of the same last name"
    assert loaded("one", "4") == ["4"], "the first one prepared again"
