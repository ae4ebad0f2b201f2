"""The performance page shows what the benchmarks wrote."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.parametrize("name", ["loss", "step", "long-rollouts"])
def test_the_page_shows_the_table_and_where_it_was_measured(name: str) -> None:
    results = ROOT / "benchmarks" / "results"
    assert (results / f"{name}.md").read_text().strip() in PAGE
    report = json.loads((results / f"{name}.json").read_text())
    assert report["machine"] in PAGE
    assert all(f"{package} {version}" in PAGE for package, version in report["versions"].items())
