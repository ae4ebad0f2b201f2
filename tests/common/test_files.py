"""Files are whole or not there, also on a disk that takes only a part of them."""

import json
import resource
from pathlib import Path

import pytest

from dopd_vl.common.files import append_jsonl, read_jsonl, write_atomically
from tests.commands import Fork

ROWS = [{"text": "a" * 100}] * 5


def write_with_little_room(path: Path) -> int:
    """Appends and replaces on a disk that holds 300 bytes of a file; fails where that is not refused by name."""
    append_jsonl(path, ROWS[:1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    for write in (lambda: append_jsonl(path, ROWS), lambda: write_atomically(path, "b" * 1000)):
        with pytest.raises(OSError, match="File too large") as refused:
            write()
        assert refused.value.filename == str(path)
    return 0


def test_without_room_a_file_stays_as_it_was_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    done = Fork(write_with_little_room, tmp_path / "rows.jsonl").result()
    assert done.returncode == 0, done.stderr
    assert read_jsonl(tmp_path / "rows.jsonl") == ROWS[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_rows_that_were_appended_are_read_again(tmp_path: Path, count: int) -> None:
    append_jsonl(tmp_path / "rows.jsonl", ROWS[:count])
    append_jsonl(tmp_path / "rows.jsonl", [{"last": 1}])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*ROWS[:count], {"last": 1}]
