"""Loading a prepared folder writes to the cache of datasets: where that fails, the cache is named, not the folder."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dopd_vl.common.errors import PrepareError
from privileged.dataset import load_privileged

LOAD = """
import sys
from privileged.dataset import load_privileged
from dopd_vl.common.errors import UserError
try:
    print(len(load_privileged(sys.argv[1])), "rows")
except UserError as error:
    print(error)
"""


def load_elsewhere(folder: Path, cache: Path, largest_file: int = resource.RLIM_INFINITY) -> str:
    """What a process says that loads the folder with this cache, and whom permissions hold back, also as root."""
    unprivileged = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*unprivileged, sys.executable, "-c", LOAD, str(folder)],
        env={**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read_only(folder: Path) -> None:
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        path.chmod(0o555)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_named_and_serves_what_it_holds(text_data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    read_only(cache)
    told = load_elsewhere(text_data, cache)
    assert told.startswith(f"{cache}: the cache of datasets cannot be written (Permission denied); ")
    assert "HF_DATASETS_CACHE" in told
    assert "overwrite" not in told, "the prepared folder is as it should be"
    cache.chmod(0o755)
    assert load_elsewhere(text_data, cache) == "24 rows"
    read_only(cache)
    assert load_elsewhere(text_data, cache) == "24 rows"


def test_a_cache_without_room_is_named(text_data: Path, tmp_path: Path) -> None:
    told = load_elsewhere(text_data, tmp_path / "cache", largest_file=1000)
    assert told.startswith(f"{tmp_path / 'cache'}: the cache of datasets cannot be written (File too large); ")


def test_a_cache_below_a_file_is_named(text_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrepareError, match=r"file/cache: the cache of datasets cannot be written \(Not a directory\)"):
        load_privileged(text_data, cache_dir=str(tmp_path / "file" / "cache"))
