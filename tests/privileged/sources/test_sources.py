"""Sources: records by number, and settings that are named when they are wrong."""

import json

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from privileged_samples import noise

from dopd_vl.common.errors import ConfigurationError, RecordError
from privileged.records.records import parse_record
from privileged.sources.coco import CocoSource
from privileged.sources.sources import SOURCES, JsonlSource, dataset_source


def test_jsonl_lines_are_found_by_number(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '\ufeff{"prompt": "ä"}',
        "",
        '{"prompt": "' + "x" * 3_000_000 + '"}',
        "  ",
        "[1]",
        "{",
        '{"prompt": "last"}',
    ]
    path.write_bytes("\r\n".join(lines).encode())
    source = JsonlSource({"path": str(path)})
    assert len(source) == 5
    assert source[0] == {"prompt": "ä"}
    assert len(source[1]["prompt"]) == 3_000_000
    with pytest.raises(RecordError, match=r"line 5 of a\.jsonl is a list"):
        source[2]
    with pytest.raises(RecordError, match="line 6"):
        source[3]
    assert source[4] == {"prompt": "last"}


def test_a_line_that_cannot_be_decoded_or_is_too_deep_is_a_bad_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n' + b"[" * 200_000 + b"\n")
    source = JsonlSource({"path": str(path)})
    for number in range(2):
        with pytest.raises(RecordError):
            source[number]


def test_the_fingerprint_of_a_jsonl_file_is_its_content(tmp_path):
    for name, text in (("a", '{"a": 1}\n'), ("b", '{"a": 1}\n'), ("c", '{"a": 2}\n')):
        (tmp_path / f"{name}.jsonl").write_text(text)
    a, b, c = (JsonlSource({"path": str(tmp_path / f"{name}.jsonl")}).fingerprint() for name in "abc")
    assert a == b != c


def test_columns_are_renamed_and_looked_up_in_nested_mappings(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "2+2?", "meta": {"key": {"value": 4}}, "steps": ["Count."], "a.b": 1}\n')
    columns = {"prompt": "q", "answer": "meta.key.value", "privileged.hints": "steps", "id": "a.b", "task": "absent.x"}
    raw = JsonlSource({"path": str(tmp_path / "a.jsonl"), "columns": columns}, optional=["task"])[0]
    assert (raw["prompt"], raw["answer"], raw["privileged.hints"], raw["id"]) == ("2+2?", 4, ["Count."], 1)
    assert raw["task"] is None


@pytest.fixture
def table():
    features = Features({"question": Value("string"), "answer": Value("string"), "image": Image()})
    return Dataset.from_dict(
        {
            "question": [f"q{number}" for number in range(7)],
            "answer": [str(number) for number in range(7)],
            "image": [noise(seed=number) for number in range(7)],
        },
        features=features,
    )


def test_saved_datasets_and_parquet_files_give_the_same_records(tmp_path, table):
    table.save_to_disk(str(tmp_path / "saved"))
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "parts").mkdir()
    for number, rows in enumerate(([0, 1, 2], [3, 4, 5, 6])):
        table.select(rows).to_parquet(str(tmp_path / "parts" / f"train-{number}.parquet"), batch_size=2)
    columns = {"prompt": "question", "images": "image"}
    sources = [
        dataset_source({"path": str(tmp_path / "saved"), "columns": columns}),
        dataset_source({"path": str(tmp_path / "splits"), "split": "train", "columns": columns}),
        dataset_source({"path": str(tmp_path / "parts"), "split": "train", "columns": columns}),
        dataset_source({"path": str(tmp_path / "parts"), "columns": columns}),
    ]
    for source in sources:
        assert len(source) == 7
        for number in (6, 0, 3):
            record = parse_record(source[number], default_task="exact")
            assert (record.prompt[0]["content"], record.answer) == (f"q{number}", str(number))
            assert record.images[0].image.tobytes() == noise(seed=number).tobytes()
    assert sources[0].fingerprint() != sources[2].fingerprint()


COCO = {
    "images": [
        {"id": 1, "file_name": "1.png", "width": 48, "height": 32},
        {"id": 2, "file_name": "2.png", "width": 48, "height": 32},
        {"id": 3, "file_name": "3.png", "width": 640, "height": 480},
    ],
    "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog {x}"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [20, 2, 10, 20]},
        {"id": 3, "image_id": 1, "category_id": 9, "bbox": [30, 2, 10, 20]},
        {"id": 4, "image_id": 2, "category_id": 5, "bbox": [1, 2, 10, 20], "iscrowd": 1},
        {"id": 5, "image_id": 2, "category_id": 9, "bbox": [1, 2, 10]},
        {"id": 6, "image_id": 3, "category_id": 9, "bbox": [1, 2, 10, 20]},
        {"id": 7, "image_id": 4, "category_id": 9, "bbox": [1, 2, 10, 20]},
    ],
}
COUNTING = {
    "question": "How many objects of the kind {label} are there?",
    "answer": "{count}",
    "task": "number",
    "hints": ["Find every {label}."],
}
LISTING = {"question": "Which kinds?", "answer": "{labels}", "per": "image"}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        noise(seed=number).save(tmp_path / "images" / f"{number}.png")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(COCO))

    def build(**options):
        settings = {"annotations": str(path), "images": str(tmp_path / "images"), "questions": [COUNTING, LISTING]}
        return CocoSource({**settings, **options})

    return build


def test_coco_annotations_become_questions_with_their_boxes(coco):
    source = coco()
    records, reasons = {}, []
    for number in range(len(source)):
        try:
            record = parse_record(source[number], image_root=source.image_root)
            records[record.id] = record
        except RecordError as error:
            reasons.append(str(error))
    cats = records["instances-1-5-0"]
    assert cats.prompt[0]["content"] == "How many objects of the kind cat are there?"
    assert (cats.answer, cats.task, cats.privileged["hints"]) == ("2", "number", ["Find every cat."])
    # COCO gives x, y, width, height: [1, 2, 10, 20] is (1, 2)-(11, 22).
    assert [box["bbox"] for box in cats.privileged["boxes"]] == [[1, 2, 11, 22], [20, 2, 30, 22]]
    assert records["instances-1-1"].answer == "cat, dog {x}"
    # Image 2 has a crowd of cats (no count), a dog without a fourth number; image 3 was annotated on another size;
    # annotation 7 belongs to no image.
    assert sorted(records) == ["instances-1-1", "instances-1-5-0", "instances-1-9-0"]
    assert len(reasons) == 4
    assert any("4 numbers" in reason for reason in reasons)
    assert sum("was annotated as 640 x 480" in reason for reason in reasons) == 2
    assert any("no such image" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("jsonl", {}, r"source\.options\.path: missing"),
        ("jsonl", {"path": "nowhere.jsonl"}, r"source\.options\.path: no file 'nowhere\.jsonl'"),
        ("jsonl", {"path": 5}, r"source\.options\.path: must be a text"),
        ("jsonl", {"pth": "a"}, r"source\.options: unknown key 'pth', did you mean 'path'"),
        ("jsonl", {"path": __file__, "images": "nowhere"}, r"source\.options\.images"),
        (
            "jsonl",
            {"path": __file__, "columns": {"promt": "q"}},
            r"columns\.promt: 'promt' is unknown; did you mean 'prompt'",
        ),
        ("jsonl", {"path": __file__, "columns": {"prompt": 1}}, r"source\.options\.columns: .*each value a text"),
        ("jsonl", {"path": __file__, "columns": ["q"]}, r"source\.options\.columns: must be a mapping"),
        ("dataset", {"path": "nowhere"}, r"source\.options\.path"),
        ("dataset", {"path": __file__}, "no readable parquet file"),
        ("coco", {"annotations": __file__, "images": ".", "questions": [COUNTING]}, "is no JSON"),
    ],
)
def test_wrong_options_name_their_key(kind, options, message):
    with pytest.raises(ConfigurationError, match=message):
        SOURCES[kind](options)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            {"question": "a", "answer": "{cout}"},
            r"questions\[0\]\.answer: the field: 'cout' is unknown; did you mean 'count'",
        ),
        ({"question": "{labels}", "answer": "a"}, r"questions\[0\]\.question"),
        ({"question": "{label.__class__}", "answer": "a"}, r"questions\[0\]\.question"),
        ({"question": "{", "answer": "a"}, r"questions\[0\]\.question"),
        ({"question": "a", "answer": "b", "per": "box"}, r"questions\[0\]\.per"),
        ({"question": "a", "answer": "b", "task": "sum"}, r"questions\[0\]\.task"),
        ({"question": "a"}, r"questions\[0\]\.answer: missing"),
        ({"question": "a", "answer": "b", "hints": [1]}, r"questions\[0\]\.hints"),
        ("how many?", "must be a mapping"),
    ],
)
def test_wrong_coco_questions_name_their_key(coco, question, message):
    with pytest.raises(ConfigurationError, match=message):
        coco(questions=[question])


def test_coco_without_questions_or_lists_is_refused(coco, tmp_path):
    with pytest.raises(ConfigurationError, match="at least one question"):
        coco(questions=[])
    (tmp_path / "other.json").write_text('{"images": [1]}')
    with pytest.raises(ConfigurationError, match="no list 'images'"):
        coco(annotations=str(tmp_path / "other.json"))


def test_a_column_that_a_table_lacks_is_named_before_anything_is_prepared(tmp_path):
    path = tmp_path / "train.parquet"
    Dataset.from_list([{"question": "q", "answer": "a", "picture": "1.png", "meta": {"steps": ["s"]}}]).to_parquet(path)

    def source(**columns):
        return dataset_source({"path": str(path), "columns": {"prompt": "question", **columns}})

    for columns, message in (
        ({"images": "pictures"}, "images: the data has no column 'pictures'; did you mean 'picture'"),
        ({"privileged.hints": "steps"}, "privileged.hints: the data has no column 'steps'"),
        ({"privileged.hints": "meta.stps"}, "privileged.hints: the data has no column 'meta.stps'; .* 'meta.steps'"),
        ({"id": "key"}, "id: the data has no column 'key'"),
    ):
        with pytest.raises(ConfigurationError, match=rf"^source\.options\.columns\.{message}"):
            source(**columns)
    found = source(images="picture", **{"privileged.hints": "meta.steps"})[0]
    assert (found["images"], found["privileged.hints"]) == ("1.png", ["s"])
