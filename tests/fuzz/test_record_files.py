"""Files of records that are cut short, changed or of another make: records come out, or an error of ours."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from reasons import assert_one_line

from dopd_vl.common.errors import RecordError, UserError
from privileged.dataset import load_privileged
from privileged.records.records import Record, parse_record
from privileged.schema import PRIVILEGED_KEYS
from privileged.sources.sources import SOURCES
from privileged.sources.transforms import TRANSFORMS

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "answer", "role", "content", "bbox", "label", "type"]), inner)
    ),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {"prompt": st.text(max_size=6) | JSON, "answer": st.text(max_size=6) | JSON},
    optional={
        "id": JSON,
        "images": JSON,
        "image_sizes": JSON,
        "task": JSON,
        "source": JSON,
        "box_format": JSON,
        "privileged": st.dictionaries(st.sampled_from(PRIVILEGED_KEYS), JSON, max_size=3) | JSON,
    },
)
COLUMNS = st.dictionaries(
    st.sampled_from(["prompt", "answer", "task", "privileged.hints", "privileged.boxes"]),
    st.sampled_from(["prompt", "answer", "prompt.role", "a.b.c", ".", ""]),
    max_size=2,
)


def records_of(kind: str, options: Mapping[str, Any]) -> list[Record]:
    """All sound records; the rest must be refused with a RecordError each, the whole with a UserError."""
    try:
        source = SOURCES[kind](options)
    except UserError as error:
        assert_one_line(error)
        return []
    sound = []
    for index in range(len(source)):
        try:
            raw = source[index]
            sound.append(parse_record(raw, index=index, image_root=source.image_root, default_task="exact"))
        except RecordError as error:
            assert_one_line(error)
    assert isinstance(source.fingerprint(), str)
    return sound


LINES = st.lists(ROWS.map(json.dumps).map(str.encode) | st.binary(max_size=12), max_size=4).map(b"\n".join)


@SETTINGS
@given(content=LINES | st.binary(max_size=60), columns=COLUMNS)
@example(content=b"[" * 20_000, columns={})
@example(content=b'{"a":' * 20_000, columns={})
@example(content=b'{"prompt": ' + b"9" * 5000 + b"}", columns={})
@example(content=b'{"prompt": "x", "answer": NaN}', columns={})
@example(content=b'{"prompt": "\\ud800", "answer": "\\ud800"}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["\\u0000.png"]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["' + b"x" * 5000 + b'.png"]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["../../../../etc/passwd"]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["."]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["http://"]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["http://["]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": ["data:image/png;base64,%%%"]}', columns={})
@example(content=b'{"prompt": "x", "answer": 1, "images": [{"bytes": "x", "path": null}]}', columns={})
@example(content=b"\xef\xbb\xbf{}", columns={})
def test_any_jsonl_file_gives_records_or_reasons(content: bytes, columns: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    records_of("jsonl", {"path": str(file), "columns": columns})


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """The file with a few bytes changed, cut off or put in."""
    edits = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=4)), max_size=4)

    def apply(args: tuple[list[tuple[int, bytes]], int]) -> bytes:
        changed = bytearray(whole)
        for position, new in args[0]:
            changed[position : position + len(new)] = new
        return bytes(changed[: args[1]])

    return st.tuples(edits, st.just(len(whole)) | st.integers(0, len(whole))).map(apply)


def a_parquet_file() -> bytes:
    sink = pa.BufferOutputStream()
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1), "privileged": {"hints": ["Add."]}} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


PARQUET = a_parquet_file()


@SETTINGS
@given(content=damaged(PARQUET))
def test_any_damage_to_a_parquet_file_is_a_reason(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(content)
    records_of("dataset", {"path": str(file)})


def test_the_whole_parquet_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(PARQUET)
    records = records_of("dataset", {"path": str(tmp_path / "rows.parquet")})
    assert [record.answer for record in records] == ["1", "2", "3", "4", "5", "6"]


ARROW_TYPES = (
    pa.int64(), pa.float32(), pa.string(), pa.binary(), pa.timestamp("us"), pa.list_(pa.string()), pa.duration("s"),
    pa.struct([("role", pa.string())]), pa.decimal128(5, 2), pa.map_(pa.string(), pa.int64()), pa.date32(), pa.null(),
)  # fmt: skip


@SETTINGS
@given(
    columns=st.dictionaries(
        st.sampled_from(["prompt", "answer", "images", "privileged", "task", "id", "image_sizes", "x"]),
        st.sampled_from(ARROW_TYPES),
        min_size=1,
    ),
    count=st.integers(0, 3),
    mapped=COLUMNS,
)
def test_parquet_columns_of_any_type_give_records_or_reasons(
    columns: dict[str, pa.DataType], count: int, mapped: dict[str, str], tmp_path: Path
) -> None:
    table = pa.table({name: pa.nulls(count, kind) for name, kind in columns.items()})
    filled = table.append_column("n", pa.array(range(count), pa.int64()))
    pq.write_table(filled, tmp_path / "rows.parquet")
    records_of("dataset", {"path": str(tmp_path / "rows.parquet"), "columns": mapped})


CARDS = st.recursive(
    st.none()
    | st.text(max_size=6)
    | st.integers()
    | st.sampled_from(["*", "a*", "**/*", "../*", "/", "a**", "[", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["configs", "config_name", "data_files", "data_dir", "split", "path"]), inner)
    ),
    max_leaves=8,
)
FRONTS = CARDS.map(lambda card: f"---\n{json.dumps({'configs': [card]})}\n---\n") | st.text(max_size=20).map(
    "---\n{}\n---".format
)


@SETTINGS
@given(
    readme=FRONTS.map(str.encode) | st.binary(max_size=30),
    config=st.none() | st.just("b"),
    split=st.none() | st.just("a"),
)
@example(
    readme=b"---\nconfigs: [{config_name: b, data_files: [{split: a, path: '../*'}]}]\n---\n", config=None, split=None
)
@example(readme=b"---\nconfigs: [{config_name: b, data_dir: ../.., data_files: a*}]\n---\n", config=None, split=None)
@example(readme=b"---\nconfigs: [{config_name: b, data_dir: ../..}]\n---\n", config=None, split=None)
def test_a_folder_with_any_card_gives_its_own_records_or_a_reason(
    readme: bytes, config: str | None, split: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    (tmp_path / "secret.parquet").write_bytes(PARQUET)
    (folder / "a.parquet").write_bytes(PARQUET)
    (folder / "README.md").write_bytes(readme)
    options = {"config": config, "split": split}
    chosen = {key: value for key, value in options.items() if value is not None}
    assert len(records_of("dataset", {"path": str(folder), **chosen})) in (0, 6)


@SETTINGS
@given(objects=st.dictionaries(st.sampled_from(["bbox", "category", "label", "iscrowd", "x"]), JSON) | JSON)
@example(objects={"bbox": [[1, 2, 3, 4]], "category": [True]})
@example(objects={"bbox": [[1, 2, 3, 4]], "category": [10**400]})
def test_any_objects_become_boxes_or_a_reason(objects: Any) -> None:
    try:
        boxes = TRANSFORMS["objects"](objects, names=["cat"])
    except RecordError as error:
        assert_one_line(error)
        return
    assert all(set(box) == {"label", "bbox"} and isinstance(box["label"], str) for box in boxes)


AUDITS = JSON.map(json.dumps) | st.text(max_size=20) | st.fixed_dictionaries(
    {"format": st.just("privileged-dataset-1")}, optional={"files": JSON, "records": JSON}
).map(json.dumps)  # fmt: skip


@SETTINGS
@given(audit=AUDITS)
@example(audit="[" * 20_000)
@example(audit='{"format": "privileged-dataset-1", "records": 24, "files": ["../../README.md"]}')
@example(audit='{"format": "privileged-dataset-1", "records": 24, "files": []}')
def test_a_prepared_folder_with_any_audit_is_loaded_or_refused(audit: str, text_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    if not folder.exists():
        shutil.copytree(text_data, folder)
    (folder / "audit.json").write_text(audit, encoding="utf-8", errors="surrogatepass")
    try:
        load_privileged(folder, cache_dir=str(tmp_path / "cache"))
    except UserError as error:
        assert_one_line(error, str(folder))


@settings(SETTINGS, max_examples=15, phases=[Phase.generate])
@given(data=st.data())
def test_any_damage_to_a_prepared_folders_parquet_is_a_reason(
    data: st.DataObject, text_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "prepared"
    if not folder.exists():
        shutil.copytree(text_data, folder)
    [whole] = sorted((text_data / "data").glob("*.parquet"))
    (folder / "data" / whole.name).write_bytes(data.draw(damaged(whole.read_bytes())))
    try:
        rows = load_privileged(folder, cache_dir=str(tmp_path / "cache"))
        assert len(rows) == 24
    except UserError as error:
        assert_one_line(error, str(folder))
