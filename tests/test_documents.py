"""The pages for contributors name files that there are, and their links lead somewhere."""

import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dopd_vl
from dopd_vl.common.resources import find_config
from tests.test_architecture import imports_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs" / "architecture.md"]
MADE_LATER = {"best/", "images/", "student/", "dist/", "tests/ROOM/"}


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


def test_the_source_distribution_carries_what_a_contributor_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for page in [*PAGES, ROOT / "README.md", ROOT / "LICENSE", *(ROOT / "docs").glob("*.md")]:
        assert str(page.relative_to(ROOT)) in names
    assert {
        "examples/from_python.py",
        "configs/quickstart.yaml",
        "data/nano/digits/LICENSE",
        "Makefile",
        ".ci/package-check",
    } <= names
    assert not [name for name in names if name.startswith(("runs/", ".venv/", "dist/"))]


def test_the_check_of_packages_names_what_there_is() -> None:
    script = ROOT / ".ci" / "package-check"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text(encoding="utf-8")
    configs = [name for name in re.findall(r'--config "?([\w./-]+)(?=[ "])', text) if not name.endswith("-")]
    assert len(configs) >= 8
    for name in configs:
        assert find_config(name).is_file()
    files = re.findall(r"tests/\S+", text)
    assert files
    for name in files:
        assert (ROOT / name).exists(), name


def test_every_dependency_is_bounded_below_and_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(one for extra in extras.values() for one in extra)]:
        assert re.search(r">=[\d.]+,<[\d.]+$", requirement), requirement


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@pytest.mark.parametrize("folder", ["dopd_vl", "privileged"])
def test_what_is_imported_is_declared_and_does_not_come_along_by_chance(folder: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = names_of(project["dependencies"])
    asking = names_of(project["optional-dependencies"]["annotate"])
    packages = packages_distributions()
    for path, name in imports_of(folder):
        module = name.partition(".")[0]
        if module not in sys.stdlib_module_names and module not in ("dopd_vl", "privileged"):
            declared = always | asking if path == "privileged/annotators/endpoint.py" else always
            assert {canonicalize_name(package) for package in packages[module]} & declared, f"{path} imports {name}"
