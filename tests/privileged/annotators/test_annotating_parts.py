"""Parts of a set prepared apart and merged give what a single run gives, to the byte."""

import io
import json
import shutil

import pytest
from answering import Answering
from privileged_samples import files_of, jsonl_settings
from rich.console import Console

from dopd_vl.common.errors import ConfigurationError, PrepareError
from privileged.annotators.settings import AnnotateConfig
from privileged.prepare.prepare import prepare


def run(config):
    return prepare(config, console=Console(file=io.StringIO()))


def write_doubles(root, folder):
    """The world's records twice over, so that most duplicates lie in another part than their first."""
    lines = (root / "records.jsonl").read_text().splitlines()
    again = [line.replace('"key": "row-', '"key": "again-') for line in lines]
    shutil.copytree(root / "images", folder / "images")
    (folder / "records.jsonl").write_text("\n".join([*lines, *again[:20], *lines[30:]]) + "\n")
    return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_merged_parts_are_the_single_run(jsonl_world, tmp_path, parts):
    root = write_doubles(jsonl_world, tmp_path)
    server = Answering()
    with server.serving() as url:
        annotate = AnnotateConfig(url=url, model="m", key_env=None, parts=["caption"], recheck=False)
        changes = {"annotate": annotate, "shuffle": True, "seed": 3, "max_rejected_share": 0.8}
        single = run(jsonl_settings(root, tmp_path / "single", **changes))
        for number in range(parts, 0, -1):  # in whatever order
            done = run(jsonl_settings(root, tmp_path / "out", part=f"{number}/{parts}", **changes))
            assert done.output.name == f"out.part-{number}-of-{parts}"
    merged = run(jsonl_settings(root, tmp_path / "out", merge=True, **changes))
    assert files_of(merged.output) == files_of(single.output)
    assert merged.audit["counts"]["stages"]["duplicate"] > 20
    assert (merged.records, merged.rejected) == (single.records, single.rejected)


def test_an_interrupted_part_goes_on_where_it_was(jsonl_world, tmp_path, monkeypatch):
    from privileged.prepare.partition import PartFolder

    settings = {"max_rejected_share": 0.2, "shard_size": 5}
    run(jsonl_settings(jsonl_world, tmp_path / "whole", part="1/2", **settings))
    write, written = PartFolder.write, []

    def stops(self, number, stream):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        return write(self, number, stream)

    monkeypatch.setattr(PartFolder, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        run(jsonl_settings(jsonl_world, tmp_path / "out", part="1/2", **settings))
    monkeypatch.setattr(PartFolder, "write", lambda *args: written.append(args[1]) or write(*args))
    run(jsonl_settings(jsonl_world, tmp_path / "out", part="1/2", **settings))
    assert written == [0, 1, 2, 3]
    assert files_of(tmp_path / "out.part-1-of-2") == files_of(tmp_path / "whole.part-1-of-2")


def test_a_merge_names_the_part_that_is_missing_or_different(jsonl_world, tmp_path):
    def config(**changes):
        return jsonl_settings(jsonl_world, tmp_path / "out", **changes)

    with pytest.raises(PrepareError, match="found: none"):
        run(config(merge=True))
    run(config(part="1/2"))
    with pytest.raises(PrepareError, match=r"out.part-2-of-2: is missing"):
        run(config(merge=True))
    run(config(part="2/2", seed=0, limit=39))
    with pytest.raises(PrepareError, match="part-2-of-2: was prepared from other settings"):
        run(config(merge=True))
    done = json.loads((tmp_path / "out.part-1-of-2" / "part.json").read_text())
    assert (done["first"], done["last"]) == (0, 20)


def test_a_part_that_was_copied_in_part_is_named_and_one_that_was_damaged_is_made_again(jsonl_world, tmp_path):
    def config(**changes):
        return jsonl_settings(jsonl_world, tmp_path / "out", **changes)

    for part in ("1/2", "2/2"):
        run(config(part=part))
    folder = tmp_path / "out.part-2-of-2"
    file = sorted(folder.glob("outcomes-*.parquet"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrepareError, match=rf"{file.name}: is missing, or not what was written"):
        run(config(merge=True))
    run(config(part="2/2"))
    assert file.read_bytes() == whole
    assert run(config(merge=True)).records == 36


@pytest.mark.parametrize("part", ["0/4", "5/4", "2", "2/x", "-1/4", "2/4/8"])
def test_a_part_that_cannot_be_is_refused(jsonl_world, tmp_path, part):
    with pytest.raises(ConfigurationError, match=r"^part: "):
        run(jsonl_settings(jsonl_world, tmp_path / "out", part=part))
