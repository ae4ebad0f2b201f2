"""Whatever befalls a file of a preparation, its command says so or mends it, and what it mends is what was there."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from dopd_vl.cli import main
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import exclusive
from privileged.dataset import load_privileged
from tests.commands import Fork
from tests.damages import DAMAGES, files_of

SENTENCE = "A farmer counts the eggs of her hens on the day numbered"


def write_config(folder: Path, answer: str = "{0}", **settings: object) -> Path:
    """20 records in 3 shards. The last ones repeat, nearly repeat and contradict earlier ones, or have their ids."""
    rows = [
        {"id": f"r{n}", "prompt": f"{SENTENCE} {n}: how many are there?", "answer": answer.format(n)} for n in range(20)
    ]
    rows[17]["id"] = "r1"
    rows[18]["prompt"] = rows[2]["prompt"]
    rows[19]["prompt"] = rows[3]["prompt"].replace("how many are", "how many")
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "options": {"path": str(folder / "records.jsonl")}, "default_task": "exact"}
    config = {"source": source, "output": str(folder / "out"), "shard_size": 7, "sample": 2, "max_rejected_share": 0.5}
    (folder / "c.yaml").write_text(yaml.safe_dump({**config, **settings}))
    return folder / "c.yaml"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def prepare(config: Path, *options: str) -> int:
    return main(["prepare", "--config", str(config), *options])


def prepare_and_die(config: Path, shards: int, *options: str) -> None:
    """Prepare in this process, which ends when so many files of records are committed."""
    from privileged.prepare import journal, partition

    committed = 0

    def committing(temporary: Path, final: Path) -> None:
        nonlocal committed
        if committed == shards:
            os._exit(9)
        commit(temporary, final)
        committed += final.suffix == ".parquet"

    commit = journal.commit_file
    journal.commit_file = partition.commit_file = committing
    prepare(config, *options)


def assert_told_or_mended(
    config: Path, folder: Path, undisturbed: dict[str, bytes], said: pytest.CaptureFixture[str], *options: str
) -> None:
    """For every file of a folder and every damage to it; what the command needs for that is in the message."""
    state = shutil.copytree(folder, folder.with_name("state"))
    for name, content in files_of(state).items():
        for kind, damage in DAMAGES.items():
            if not content and kind != "deleted":
                continue
            shutil.rmtree(folder)
            shutil.copytree(state, folder)
            damage(folder / name)
            said.readouterr()
            if prepare(config, *options) == 2:
                [line] = [line for line in said.readouterr().err.splitlines() if line.startswith("error: ")]
                assert str(folder / name) in line, (name, kind)
                assert "overwrite: true" in line
                assert prepare(config, *options, "--overwrite", "true") == 0, (name, kind)
            assert files_of(folder) == undisturbed, (name, kind)


def test_a_finished_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert prepare(config) == 0
    undisturbed = files_of(tmp_path / "out")
    assert json.loads(undisturbed["audit.json"])["rejected"] == 2
    assert_told_or_mended(config, tmp_path / "out", undisturbed, capsys)
    assert prepare(config, "--overwrite", "true") == 0
    assert "already prepared" in capsys.readouterr().err, "what is whole is not made again"


@pytest.mark.parametrize("shards", [0, 2])
def test_an_unfinished_folder(shards: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert prepare(config) == 0
    undisturbed = files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert Fork(prepare_and_die, config, shards).result().returncode == 9
    assert len(list((tmp_path / "out" / "data").iterdir())) == shards
    assert_told_or_mended(config, tmp_path / "out", undisturbed, capsys)


@pytest.mark.parametrize("shards", [1, 9])
def test_a_part(shards: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    folder = tmp_path / "out.part-1-of-2"
    assert prepare(config, "--part", "1/2") == 0
    undisturbed = files_of(folder)
    shutil.rmtree(folder)
    Fork(prepare_and_die, config, shards, "--part", "1/2").result()
    assert ("part.json" in files_of(folder)) == (shards == 9)
    assert_told_or_mended(config, folder, undisturbed, capsys, "--part", "1/2")


def test_a_merge_takes_no_part_that_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert prepare(config) == 0
    undisturbed = files_of(tmp_path / "out")
    for part in ("1/2", "2/2"):
        assert prepare(config, "--part", part) == 0
    folder = tmp_path / "out.part-2-of-2"
    state = shutil.copytree(folder, tmp_path / "state")
    for name in files_of(state):
        for kind, damage in DAMAGES.items():
            shutil.rmtree(tmp_path / "out")
            damage(folder / name)
            capsys.readouterr()
            if prepare(config, "--merge", "true") == 2:
                assert str(folder / name) in capsys.readouterr().err, (name, kind)
                shutil.rmtree(folder)
                shutil.copytree(state, folder)
                assert prepare(config, "--merge", "true") == 0
            assert files_of(tmp_path / "out") == undisturbed, (name, kind)
            shutil.copytree(state, folder, dirs_exist_ok=True)


def test_a_merge_waits_for_nobody_and_reads_nothing_that_is_being_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    for part in ("1/2", "2/2"):
        assert prepare(config, "--part", part) == 0
    with exclusive(tmp_path / "out.part-1-of-2", "preparation"):
        assert prepare(config, "--merge", "true") == 2
    assert "out.part-1-of-2: another preparation is writing here" in capsys.readouterr().err
    assert prepare(config, "--merge", "true") == 0


def test_an_overwriting_that_is_refused_has_changed_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert prepare(config) == 0
    before = files_of(tmp_path / "out")
    with exclusive(tmp_path / "out", "preparation"):
        assert prepare(config, "--limit", "5", "--overwrite", "true") == 2
    assert files_of(tmp_path / "out") == before


def answers_by_evaluation(config: Path, model: Path, output: Path) -> list[str]:
    arguments = ["--model", str(model), "--data", str(config.parent / "out"), "--output_dir", str(output)]
    assert main(["evaluate", *arguments, "--max_new_tokens", "2", "--size", "3"]) == 0
    return [json.loads(line)["answer"] for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_a_set_made_anew_is_not_taken_for_what_was_there(tmp_path: Path, nano_models: Path) -> None:
    """The same path, number of rows and moment of writing, to the nanosecond."""
    model, found = nano_models / "text-student", []
    for answer in ("a{0}", "b{0}"):
        config = write_config(tmp_path, answer)
        assert prepare(config, "--overwrite", "true") == 0
        for file in (tmp_path / "out" / "data").iterdir():
            os.utime(file, ns=(10**18, 10**18))
        found.append(answers_by_evaluation(config, model, tmp_path / answer[0]))
        assert found[-1] == [row["answer"] for row in load_privileged(tmp_path / "out").select(range(3))]
    assert found == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


def test_what_is_damaged_is_not_trained_or_scored_on(
    tmp_path: Path, nano_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    assert prepare(config) == 0
    model = str(nano_models / "text-student")
    for file in sorted((tmp_path / "out" / "data").iterdir()):
        whole = file.read_bytes()
        for kind, damage in DAMAGES.items():
            damage(file)
            capsys.readouterr()
            assert main(["evaluate", "--model", model, "--data", str(tmp_path / "out")]) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert str(file) in line, kind
            assert "overwrite: true" in line
            file.write_bytes(whole)
    for name in ("audit.json", "README.md"):
        whole = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(whole[: len(whole) // 2])
        if name == "audit.json":
            with pytest.raises(UserError, match=r"audit\.json or README\.md is missing or damaged; .*overwrite: true"):
                load_privileged(tmp_path / "out")
        (tmp_path / "out" / name).write_bytes(whole)
    assert len(load_privileged(tmp_path / "out")) == 18


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path, output=str(tmp_path / "set[v1]*"))
    assert prepare(config) == 0
    assert len(load_privileged(tmp_path / "set[v1]*")) == 18
