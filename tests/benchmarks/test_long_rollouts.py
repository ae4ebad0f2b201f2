"""The benchmark of long rollouts: its line, and what it does not accept. It is run by hand; a run takes an hour."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("long_rollouts")


def test_its_line_has_the_slope_of_the_rows_and_says_what_misses_it(benchmark: Any) -> None:
    rows = [{"response_tokens": n, "peak": 6e9 + 5e5 * n} for n in (512, 1024, 2048, 4096)]
    line = benchmark.line_through(rows)
    assert line["slope"] == pytest.approx(5e5)
    assert line["start"] == pytest.approx(6e9)
    assert line["worst_miss"] == pytest.approx(0, abs=1e-9)
    rows[-1]["peak"] *= 1.5  # as attention scores that are kept would make it
    assert benchmark.line_through(rows)["worst_miss"] > 0.05


def test_responses_that_end_early_are_no_measurement(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark.memory, "child", lambda *words: {"response_tokens": 40})
    with pytest.raises(SystemExit, match="every response ended before 64 tokens"):
        benchmark.measure(str(tmp_path), 64, argparse.Namespace(group=2, threads=1))
