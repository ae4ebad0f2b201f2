"""A disk that is full or read-only: one line, nothing half-written that looks whole, and the same bytes in the end."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from privileged_samples import files_of

from dopd_vl.cli import main
from tests.commands import Fork, remount


@pytest.fixture
def config(jsonl_world: Path, tmp_path: Path) -> Path:
    columns = {"id": "key", "prompt": "question", "answer": "solution", "images": "file"}
    options = {"path": str(jsonl_world / "records.jsonl"), "images": str(jsonl_world / "images"), "columns": columns}
    source = {"kind": "jsonl", "options": options, "default_task": "number"}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"source": source, "shard_size": 14, "max_rejected_share": 0.2, "sample": 2}))
    return file


def prepare(config: Path, output: Path, *options: str) -> int:
    return main(["prepare", "--config", str(config), "--output", str(output), *options])


def prepare_small_files(config: Path, output: Path, largest: int) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    return prepare(config, output)


def assert_one_line(said: str, folder: Path, reason: str) -> None:
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    beginnings = f"{folder}: cannot be written ({reason}", f"output: the folder {folder} cannot be made"
    assert line.removeprefix("error: ").startswith(beginnings), line


def test_files_that_may_not_grow(config: Path, tmp_path: Path) -> None:
    assert prepare(config, tmp_path / "whole") == 0
    for largest in (3_000, 10_000, 60_000):  # what it says goes to a file as well
        done = Fork(prepare_small_files, config, tmp_path / "out", largest).result()
        assert done.returncode == 2, largest
        assert "cannot be written" in done.stderr, largest
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out" / "README.md").exists()
    assert prepare(config, tmp_path / "out") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_full_and_a_read_only_disk(
    config: Path, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(config, tmp_path / "whole") == 0
    output, filler = small_disk / "out", small_disk / "filler"
    output.mkdir()
    for room in (0, 20_000, 80_000, 160_000):
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        capsys.readouterr()
        assert prepare(config, output) == 2, room
        assert_one_line(capsys.readouterr().err, output, "")
        assert not (output / "README.md").exists()
    remount(small_disk, "ro")
    for folder in (output, small_disk / "other"):
        assert prepare(config, folder) == 2
        assert_one_line(capsys.readouterr().err, folder, "")
    remount(small_disk, "rw")
    filler.unlink()
    assert prepare(config, output) == 0
    assert files_of(output) == files_of(tmp_path / "whole")
    remount(small_disk, "ro")
    assert prepare(config, output) == 0, "what is finished is said to be so"
    capsys.readouterr()
    assert prepare(config, output, "--limit", "20", "--overwrite", "true") == 2
    assert_one_line(capsys.readouterr().err, output, "Read-only file system")
    assert files_of(output) == files_of(tmp_path / "whole")


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_folder_without_permission(config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o555)
    unprivileged = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    command = [
        sys.executable,
        "-m",
        "dopd_vl.cli",
        "prepare",
        "--config",
        str(config),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run([*unprivileged, *command], capture_output=True, text=True)
    (tmp_path / "out").chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, tmp_path / "out", "Permission denied")
