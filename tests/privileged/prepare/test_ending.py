"""What `dopd-vl prepare` says of columns that nothing reads, and at its end."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotating import KEY, write_records
from answering import Answering
from datasets import Dataset
from privileged_samples import noise, prepare_by_command

from tests.commands import dopd_vl


def write_signs(folder: Path, count: int = 4, **names: str) -> dict[str, Any]:
    """A source of records with a picture and a box, some of whose columns have other names than ours."""
    rows = []
    for number in range(count):
        noise(seed=number).save(folder / f"{number}.png")
        row = {
            "id": f"r{number}",
            "prompt": f"What is on sign {number}?",
            "answer": "STOP",
            "images": [f"{number}.png"],
            "privileged.boxes": [{"label": "sign", "bbox": [1, 2, 20, 30]}],
        }
        rows.append({names.get(key, key): value for key, value in row.items()})
    (folder / "signs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "jsonl", "options": {"path": "signs.jsonl"}, "default_task": "exact"}


@pytest.mark.parametrize(
    ("columns", "key", "meant"),
    [
        ({"images": "pictures"}, "images", "did you mean 'picture'?"),
        ({"privileged.boxes": "privileged.objcts"}, "privileged.boxes", "did you mean 'privileged.objects'?"),
        ({"id": "kye"}, "id", "did you mean 'key'?"),
        ({"image_sizes": "size"}, "image_sizes", "known: "),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "dataset"])
def test_a_column_that_no_record_has_is_refused_by_its_key(tmp_path, kind, columns, key, meant):
    boxes = {"objects": [{"label": "sign", "bbox": [1, 2, 20, 30]}]}
    rows = [{"key": f"k{n}", "prompt": f"Sign {n}?", "answer": "STOP", "privileged": boxes} for n in range(3)]
    rows[0]["picture"] = "0.png"  # a column that one record has is no slip
    (tmp_path / "rows.jsonl").write_text("{\n" + "".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    path = "rows.jsonl" if kind == "jsonl" else "rows.parquet"
    source = {"kind": kind, "options": {"path": path, "columns": columns}, "default_task": "exact"}
    done = prepare_by_command(tmp_path, source)
    assert done.code == 2
    (column,) = columns.values()
    assert f"source.options.columns.{key}: the data has no column {column!r}; {meant}" in done.told
    assert not (tmp_path / "out" / "audit.json").exists()


def test_what_only_a_card_names_may_be_missing_in_every_record(tmp_path):
    card = {"title": "t", "homepage": "h", "licence": "l", "found_in": "f", "schema_checked": "s", "kind": "jsonl"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**card, "columns": {"id": "qid"}, "task": "exact"}))
    write_signs(tmp_path)
    assert prepare_by_command(tmp_path, {"card": "own.yaml", "options": {"path": "signs.jsonl"}}).code == 0
    options = {"path": "signs.jsonl", "columns": {"id": "qid"}}
    done = prepare_by_command(tmp_path, {"card": "own.yaml", "options": options}, output="other")
    assert done.code == 2
    assert "source.options.columns.id: the data has no column 'qid'; did you mean 'id'?" in done.told


@pytest.mark.parametrize(
    ("column", "name"),
    [("images", "image"), ("images", "imges"), ("privileged.boxes", "boxes"), ("privileged.boxes", "Privileged.Boxes")],
)
def test_a_column_that_nobody_asked_for_but_nearly_has_a_known_name_is_told(tmp_path, column, name):
    source = write_signs(tmp_path, **{column: name})
    if column == "images":  # no boxes without a picture
        text = (tmp_path / "signs.jsonl").read_text()
        (tmp_path / "signs.jsonl").write_text(text.replace("privileged.boxes", "objects"))
    done = prepare_by_command(tmp_path, source)
    assert done.code == 0
    assert done.told.count(f"r0: the column {name!r} is not read; did you mean {column!r}?") == 1
    assert done.found["column_unread"] == 4
    assert "the audit counted: 4 column_unread, 4 no_privilege" in done.told


def test_columns_of_ones_own_that_are_mapped_or_mean_nothing_are_not_told(tmp_path):
    source = write_signs(tmp_path, images="image", **{"privileged.boxes": "boxes"})
    source["options"]["columns"] = {"images": "image", "privileged.boxes": "boxes"}
    text = (tmp_path / "signs.jsonl").read_text()
    extra = '{"source_id": 1, "data_source": "a", "idx": 2, "question_type": "b", "hint": null, "imges": [], '
    (tmp_path / "signs.jsonl").write_text(text.replace('{"id', extra + '"id'))
    done = prepare_by_command(tmp_path, source)
    assert (done.code, len(done.rows)) == (0, 4)
    assert "is not read" not in done.told
    assert done.found == {}


def test_it_ends_with_what_was_kept_and_dropped_and_why_and_with_the_files(tmp_path):
    """One record without its picture, one that is no JSON, and a hint of every other that cannot be read."""
    path = write_records(tmp_path, 6, images=True)
    (tmp_path / "1.png").unlink()
    path.write_text(path.read_text() + "{\n")
    annotate = {"model": "m", "key_env": "TEST_KEY", "parts": ["hints"], "optional": ["hints"], "recheck": False}
    source = {"kind": "jsonl", "options": {"path": str(path)}, "default_task": "exact"}
    config = {"source": source, "output": "out", "max_rejected_share": 0.5}
    server = Answering(lambda part, body, seen: "no json")
    with server.serving() as url:
        config["annotate"] = {**annotate, "url": url, "tries": 2}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = dopd_vl("prepare", "--config", "config.yaml", cwd=tmp_path, env={"TEST_KEY": KEY})
    assert done.returncode == 0, done.stderr
    kept, aside, dropped, *files = done.stdout.splitlines()
    assert kept == "out: kept 5 of 7 records, with 5 images and 0 boxes"
    assert aside.startswith("set aside: 2 records (1 image, as in: image 0: image '1.png' is not in the")
    assert "1 read, as in: line 7 of records.jsonl is no JSON" in aside
    assert dropped.startswith("dropped: 10 parts (10 hints reply, as in: ")
    assert dropped.endswith("; the audit counted: 5 no_privilege")
    assert files == [
        "a sample to look at: out/sample.html",
        "what was set aside: out/rejected.jsonl",
        "what was dropped: out/dropped.jsonl",
    ]
    again = dopd_vl("prepare", "--config", "config.yaml", cwd=tmp_path, env={"TEST_KEY": KEY})
    assert again.stdout.splitlines() == ["out was complete already", kept, aside, dropped, *files]
