"""The pages for contributors name files that there are, and their links lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest

import dopd_vl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs" / "architecture.md"]
MADE_LATER = {"best/", "student/", "dist/", "tests/ROOM/"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    files = set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*(?:\.py|\.yaml|\.md|/))`", text)) - MADE_LATER
    assert files
    for link in links:
        assert (page.parent / link).exists(), link
    for name in files - {"config.yaml"}:
        # A page may name a file from its room.
        rooms = (ROOT, ROOT / "dopd_vl", ROOT / "privileged", *(p for p in (ROOT / "dopd_vl").iterdir() if p.is_dir()))
        assert any((room / name).exists() for room in [*rooms, ROOT / "privileged" / "annotators"]), name


def test_the_version_is_told_once_in_two_places() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == dopd_vl.__version__


def test_every_dependency_is_bounded_below_and_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(one for extra in extras.values() for one in extra)]:
        assert re.search(r">=[\d.]+,<[\d.]+$", requirement), requirement
