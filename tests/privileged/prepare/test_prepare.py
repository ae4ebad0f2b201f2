"""From records to a dataset folder: what is kept, what is set aside, and when it is refused."""

import dataclasses
import errno
import io
import json
import re
import shutil

import numpy as np
import pytest
from datasets import load_dataset
from privileged_samples import files_of, jsonl_settings, noise, raw_record
from rich.console import Console

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError, PrepareError, RecordError, UserError
from dopd_vl.common.files import exclusive
from privileged.dataset import load_privileged
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare
from privileged.schema import COLUMNS, features


class ListSource:
    """Records in memory; an exception among them is raised when its record is read."""

    name = "list"

    def __init__(self, records):
        self.records = records

    def fingerprint(self):
        return str(len(self.records))

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if isinstance(self.records[index], Exception):
            raise self.records[index]
        return self.records[index]


def quiet():
    return Console(file=io.StringIO(), width=500)


def prepare_list(records, output, **changes):
    config = PrepareConfig(SourceConfig("list"), str(output), **{"max_rejected_share": 1.0, **changes})
    return prepare(config, {"list": lambda options: ListSource(records)}, console=quiet())


@pytest.fixture(scope="module")
def prepared(jsonl_world, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    return prepare(jsonl_settings(jsonl_world, output), console=quiet())


def test_good_records_are_kept_and_bad_ones_set_aside_with_their_reason(prepared):
    assert (prepared.records, prepared.rejected, prepared.was_complete) == (36, 4, False)
    rejected = [json.loads(line) for line in (prepared.output / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["index"], entry["id"], entry["stage"]) for entry in rejected] == [
        (7, "row-7", "image"),
        (11, "row-11", "image"),
        (19, "row-19", "duplicate"),
        (23, "records-00000023", "read"),
    ]
    reasons = [entry["reason"] for entry in rejected]
    assert "damaged" in reasons[0]
    assert "leaves the image folder" in reasons[1]
    assert "same prompt and images as 'row-18'" in reasons[2]
    assert "line 24 of records.jsonl" in reasons[3]


def test_the_folder_loads_with_and_without_us(prepared, tmp_path):
    # A cache of its own: datasets would take up what another version of this package left there under the same name.
    ours = load_privileged(prepared.output, cache_dir=str(tmp_path))
    theirs = load_dataset(str(prepared.output), split="train", cache_dir=str(tmp_path))
    for dataset in (ours, theirs):
        assert tuple(dataset.column_names) == COLUMNS
        assert dataset.features == features()
        assert len(dataset) == 36
    row = ours[10]
    assert row["id"] == "row-12"
    assert row["prompt"] == [{"role": "user", "content": "How many dots, in picture 12?"}]
    assert np.array_equal(np.array(row["images"][0]), np.array(noise(seed=12)))
    assert row["privileged"]["boxes"] == [{"label": "dot", "bbox": [1.0, 2.0, 20.0, 30.0], "caption": None, "image": 0}]


def test_the_folder_holds_what_it_should(prepared):
    files = set(files_of(prepared.output))
    shards = {f"data/train-{number:05d}-of-00005.parquet" for number in range(5)}
    assert files == shards | {
        "README.md",
        "audit.json",
        "dataset_info.json",
        "rejected.jsonl",
        "sample.html",
        "sample.png",
    }
    audit = json.loads((prepared.output / "audit.json").read_text())
    assert audit == prepared.audit
    assert audit["counts"]["stages"] == {"image": 2, "duplicate": 1, "read": 1}
    assert audit["counts"]["variants"]["box_label"] == 36
    assert "| box_label | 36 |" in (prepared.output / "README.md").read_text()


def test_a_finished_folder_is_left_alone(prepared, jsonl_world):
    before = files_of(prepared.output)
    console = quiet()
    again = prepare(jsonl_settings(jsonl_world, prepared.output), console=console)
    assert again.was_complete
    assert again.records == 36
    assert "already prepared" in console.file.getvalue()
    assert files_of(prepared.output) == before


def test_workers_change_nothing(prepared, jsonl_world, tmp_path):
    prepare(jsonl_settings(jsonl_world, tmp_path / "out", workers=2), console=quiet())
    assert files_of(tmp_path / "out") == files_of(prepared.output)


def test_limit_and_shuffle_choose_the_records(jsonl_world, tmp_path):
    taken = []
    for name, changes in {"a": {"seed": 1}, "b": {"seed": 1}, "c": {"seed": 2}}.items():
        config = jsonl_settings(jsonl_world, tmp_path / name, limit=6, shuffle=True, max_rejected_share=1.0, **changes)
        prepare(config, console=quiet())
        taken.append(load_privileged(tmp_path / name)["id"][:])
    assert taken[0] == taken[1] != taken[2]
    plain = prepare(jsonl_settings(jsonl_world, tmp_path / "d", limit=6), console=quiet())
    assert load_privileged(plain.output)["id"][:] == [f"row-{number}" for number in range(6)]


def test_too_many_rejected_records_are_an_error_that_keeps_what_was_seen(jsonl_world, tmp_path):
    config = jsonl_settings(jsonl_world, tmp_path / "out", max_rejected_share=0.05)  # 2 of 40
    with pytest.raises(
        PrepareError, match=r"3 of the first 20 records .* the first was row-7: image 0 \('7\.png'\): .*damaged"
    ):
        prepare(config, console=quiet())
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "out" / "audit-partial.json").read_text())["rejected"] == 3
    with pytest.raises(PrepareError, match="unfinished"):
        load_privileged(tmp_path / "out")
    # A larger share goes on from there, and leaves no trace of the first attempt.
    result = prepare(dataclasses.replace(config, max_rejected_share=0.2), console=quiet())
    assert result.records == 36
    assert not (tmp_path / "out" / "audit-partial.json").exists()


def test_other_settings_or_records_are_refused_unless_overwriting(jsonl_world, tmp_path):
    config = jsonl_settings(jsonl_world, tmp_path / "out")
    prepare(config, console=quiet())
    for other in (dataclasses.replace(config, limit=5), dataclasses.replace(config, shard_size=7)):
        with pytest.raises(PrepareError, match="overwrite"):
            prepare(other, console=quiet())
    smaller = dataclasses.replace(config, limit=5, overwrite=True)
    assert prepare(smaller, console=quiet()).records == 5
    assert len(load_privileged(tmp_path / "out")) == 5
    assert prepare(smaller, console=quiet()).was_complete
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1


def test_folders_and_files_of_others_are_never_touched(jsonl_world, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for output, message in ((tmp_path, "holds other files"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(ConfigurationError, match=message):
            prepare(jsonl_settings(jsonl_world, output, overwrite=True), console=quiet())
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_only_one_preparation_writes_to_a_folder(jsonl_world, tmp_path):
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out", "preparation"), pytest.raises(UserError, match="another preparation"):
        prepare(jsonl_settings(jsonl_world, tmp_path / "out"), console=quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 0}, "shard_size"),
        ({"max_rejected_share": 1.5}, "max_rejected_share"),
        ({"limit": 0}, "limit"),
        ({"workers": -1}, "workers"),
        ({"source": SourceConfig("jsonll")}, "source.kind: 'jsonll' is unknown; did you mean 'jsonl'"),
        ({"source": SourceConfig("jsonl", box_format="xyhw")}, "source.box_format"),
        ({"source": SourceConfig("jsonl", default_task="sums")}, "source.default_task"),
    ],
)
def test_wrong_settings_name_their_key_and_write_nothing(jsonl_world, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        prepare(jsonl_settings(jsonl_world, tmp_path / "out", **changes), console=quiet())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["allow_urls", "allow_private_urls", "url_seconds"])
def test_a_setting_that_is_gone_is_refused_with_what_to_do_instead(tmp_path, key):
    file = tmp_path / "old.yaml"
    file.write_text(f"source: {{kind: jsonl}}\noutput: out\nimages: {{{key}: 1}}")
    wanted = rf"images\.{key}.* is gone: nothing is fetched; download the images into a folder"
    for arguments in (["--config", str(file)], [f"--images.{key}=1"], [f"--images.{key}", "1"]):
        with pytest.raises(ConfigurationError, match=wanted):
            read_config(PrepareConfig, arguments, "dopd-vl prepare")


def test_a_source_from_outside_may_fail_for_a_record_and_not_altogether(tmp_path):
    records = [raw_record(id="a"), RecordError("scanner jammed"), [], raw_record(id="b", prompt="Other?")]
    result = prepare_list(records, tmp_path / "out")
    assert (result.records, result.rejected) == (2, 2)
    with pytest.raises(PrepareError, match=r"record 1 of source 'list': the source failed, KeyError"):
        prepare_list([raw_record(), KeyError("x")], tmp_path / "other")
    with pytest.raises(ConfigurationError, match="holds no records"):
        prepare_list([], tmp_path / "none")

    def refuses(options):
        raise ValueError("unknown option 'x'")

    with pytest.raises(ConfigurationError, match="unknown option 'x'"):
        prepare(PrepareConfig(SourceConfig("own"), str(tmp_path / "own")), {"own": refuses}, console=quiet())


def test_ids_are_unique_and_the_first_record_keeps_its_own(tmp_path):
    records = [raw_record(id="a", prompt=f"Question {number}?") for number in range(3)]
    result = prepare_list(records, tmp_path / "out", shard_size=1)
    assert (result.records, result.rejected) == (1, 2)
    assert "used by an earlier record" in (tmp_path / "out" / "rejected.jsonl").read_text()
    # Shards without a row are files all the same, and load.
    assert load_privileged(tmp_path / "out")[0]["prompt"][0]["content"] == "Question 0?"


def test_duplicates_can_be_kept(tmp_path):
    from privileged.audit.audit import AuditConfig

    records = [raw_record(id=str(number)) for number in range(3)]
    result = prepare_list(records, tmp_path / "out", audit=AuditConfig({"duplicate_record": "warn"}))
    assert (result.records, result.audit["counts"]["findings"]) == (3, {"duplicate_record": 2})


def test_a_source_of_bad_records_only_is_an_error(tmp_path):
    with pytest.raises(PrepareError, match="every record was rejected"):
        prepare_list([{"prompt": 5}], tmp_path / "out")


def test_a_finished_dataset_is_a_source_of_the_same_records(prepared, tmp_path):
    config = PrepareConfig(SourceConfig("dataset", {"path": str(prepared.output)}), str(tmp_path / "again"))
    again = prepare(config, console=quiet())
    assert (again.records, again.rejected) == (36, 0)
    first, second = load_privileged(prepared.output), load_privileged(again.output)
    assert first.with_format("arrow")[:].equals(second.with_format("arrow")[:])


def test_progress_is_told_in_lines_or_on_a_bar(jsonl_world, tmp_path, monkeypatch):
    monkeypatch.setattr("dopd_vl.common.progress.SECONDS_BETWEEN_LINES", 0.0)
    lines = quiet()
    prepare(jsonl_settings(jsonl_world, tmp_path / "a"), console=lines)
    assert re.search(r"preparing: \d+/40 records, ", lines.file.getvalue())
    assert "rejected" in lines.file.getvalue()
    bar = Console(file=io.StringIO(), force_terminal=True, width=120)
    prepare(jsonl_settings(jsonl_world, tmp_path / "b"), console=bar)
    assert "40/40" in bar.file.getvalue()
    assert "4 rejected" in bar.file.getvalue()


def test_a_folder_that_is_damaged_or_not_ours_is_refused(prepared, tmp_path):
    with pytest.raises(PrepareError, match="no such folder"):
        load_privileged(tmp_path / "nowhere")
    with pytest.raises(PrepareError, match="no privileged dataset"):
        load_privileged(tmp_path)
    shutil.copytree(prepared.output, tmp_path / "copy")
    shard = tmp_path / "copy" / "data" / "train-00001-of-00005.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(PrepareError, match="train-00001-of-00005"):
        load_privileged(tmp_path / "copy")
    shard.unlink()
    with pytest.raises(PrepareError, match="missing"):
        load_privileged(tmp_path / "copy")
    shutil.copy(tmp_path / "copy" / "data" / "train-00002-of-00005.parquet", shard)
    with pytest.raises(PrepareError, match=r"train-00001-of-00005\.parquet: is not what was prepared"):
        load_privileged(tmp_path / "copy")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"]}), shard)
    with pytest.raises(PrepareError, match="lacks the columns answer"):
        load_privileged(tmp_path / "copy")


def test_a_full_disk_is_one_clear_line_and_the_next_run_goes_on(jsonl_world, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("privileged.prepare.journal.commit_file", full)
        with pytest.raises(UserError, match=r"out: cannot be written \(No space left on device\)"):
            prepare(jsonl_settings(jsonl_world, tmp_path / "out"), console=quiet())
    assert prepare(jsonl_settings(jsonl_world, tmp_path / "out"), console=quiet()).records == 36
