"""The session for a GPU, tried out on the CPU: all of it runs, and what fails or hangs ends nothing else."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import stages
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.sizes import FULL
from benchmarks.gpu.table import Row, Rows
from tests.commands import Fork


def test_a_session_runs_every_stage_and_is_right(tmp_path: Path) -> None:
    done = Fork(main, ["--tiny", "--out", str(tmp_path)]).result(600)
    report = json.loads((tmp_path / "results.json").read_text())
    ended = [row for rows in report.values() for row in rows if row["what"] in (stages.FAILED, stages.EARLY)]
    assert ended == []
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(report) == list(stages.STAGES)
    assert {row["verdict"] for row in report["correctness"]} == {"pass", ""}
    assert {row["what"]: row["value"] for row in report["commands"]}["steps lost or logged twice"] == 0
    parts = [row["what"] for row in report["steps"]]
    for name in ("vanilla OPD", "DOPD"):
        assert {f"{name}: {part}" for part in ("views", "scoring: teacher", "learning, backward", "optimizer")} <= set(
            parts
        )
    table = (tmp_path / "results.md").read_text()
    assert table in done.stdout
    assert table.count("\n") == 2 + sum(map(len, report.values()))


def hang(sizes: Any, rows: Rows) -> None:
    rows.add("begun", 1.0)
    time.sleep(600)


def fail(sizes: Any, rows: Rows) -> None:
    rows.add("begun", 1.0)
    raise ValueError("no such\nkernel")


def miss(sizes: Any, rows: Rows) -> None:
    rows.add("ratio", 2.5, at_most=2.0)


def test_a_stage_that_hangs_or_fails_leaves_what_it_had_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"hang": (hang, 0.4), "fail": (fail, 60), "miss": (miss, 60)}
    monkeypatch.setattr(stages, "STAGES", chosen)
    assert not stages.session(list(chosen), tmp_path, tiny=True, seconds=120)
    report = json.loads((tmp_path / "results.json").read_text())
    assert [[(row["what"], row["verdict"]) for row in rows] for rows in report.values()] == [
        [("begun", ""), (stages.EARLY, "")],
        [("begun", ""), (stages.FAILED, "")],
        [("ratio", "FAIL")],
    ]
    assert report["fail"][1]["value"] == "ValueError: no such kernel"


def test_the_stages_of_a_session_fit_nine_minutes() -> None:
    assert sum(limit for _, limit in stages.STAGES.values()) <= 9 * 60


@pytest.mark.parametrize(("found", "verdict"), [(1.2, "pass"), (1.21, "FAIL"), ("failed", "FAIL")])
def test_a_goal_is_met_up_to_its_bound(found: float | str, verdict: str) -> None:
    assert Row("ratio", found, at_most=1.2).verdict == verdict
    assert Row("ratio", found).verdict == ""
    assert FULL.of_time(1.2) == 1.2
