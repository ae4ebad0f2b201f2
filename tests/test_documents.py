"""Pages name what there is, and what is packed is whole."""

import pkgutil
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dopd_vl
from dopd_vl.common.resources import find_config
from dopd_vl.training.trackers import TABLES
from tests.pages import ROOT, links_of, text_of
from tests.test_architecture import ROOMS, imports_of

PAGES = [str(path.relative_to(ROOT)) for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))]
FOLDERS = ("dopd_vl/", "privileged/", "tests/", "docs/", "benchmarks/", "examples/", "configs/", ".ci/")
BASES = (ROOT, ROOT / "dopd_vl", ROOT / "privileged")
"""A page may name a file from one of these."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads(text_of("pyproject.toml"))["project"]
    return loaded


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in links_of(page):
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", sorted({*PAGES} - {"CHANGELOG.md"}))
def test_files_and_names_of_the_packages_on_a_page_exist(page: str) -> None:
    text = text_of(page)
    for name in set(re.findall(r"`([\w.-]+/[\w./-]*)`", text)):
        if name.startswith(FOLDERS) or name.endswith(".py"):
            assert any((base / name).exists() for base in BASES), name
    for name in set(re.findall(r"\b(dopd_vl\.\w[\w.]*\w|privileged\.\w+\.[\w.]*\w)", text)):
        pkgutil.resolve_name(name)


def test_the_index_has_a_line_for_every_page() -> None:
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*") if path.suffix in (".md", ".ipynb")}
    assert pages - {"README.md"} <= set(links_of("docs/README.md"))


def test_the_page_of_the_rooms_has_them_in_their_order() -> None:
    table = text_of("docs/architecture.md").partition("| room |")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = [name.rstrip("/").removesuffix(".py") for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)]
    rooms = [room.removeprefix("dopd_vl.") for room in ROOMS if room.count(".") == 1 and "privileged" not in room]
    assert [name.removeprefix("dopd_vl/") for name in named if name != "privileged"] == rooms


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    entries = re.findall(r"^## \[?([\w.]+)", text_of("CHANGELOG.md"), re.MULTILINE)
    assert next(entry for entry in entries if entry != "Unreleased") == dopd_vl.__version__


def test_the_citation_names_the_paper_and_the_licence(project: dict[str, Any]) -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert paper["url"].removeprefix("https://arxiv.org/abs/") in project["description"]


def test_the_workflow_runs_ci_on_supported_versions_and_may_only_read(project: dict[str, Any]) -> None:
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    supported = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    versions = job["strategy"]["matrix"]["python-version"]
    assert (versions[0], versions[-1]) == (supported[0], supported[-1])


def test_pre_commit_has_the_linter_in_the_project_s_range(project: dict[str, Any]) -> None:
    (repository,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    ruff = [hook["additional_dependencies"] for hook in repository["hooks"] if hook["entry"].startswith("ruff ")]
    (declared,) = [line for line in project["optional-dependencies"]["dev"] if line.startswith("ruff")]
    assert ruff == [[declared], [declared]]


def test_what_is_packed_has_its_version_types_and_what_a_contributor_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    with tarfile.open(tmp_path / f"dopd_vl-{dopd_vl.__version__}.tar.gz") as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert set(PAGES) <= names
    assert {
        "examples/from_python.py",
        "configs/quickstart.yaml",
        "data/nano/digits/LICENSE",
        "docs/routing.ipynb",
        "LICENSE",
        "CITATION.cff",
        "Makefile",
        ".ci/package-check",
        ".github/workflows/ci.yml",
        ".pre-commit-config.yaml",
    } <= names
    assert not [name for name in names if name.startswith(("runs/", ".venv/", "dist/"))]
    with zipfile.ZipFile(tmp_path / f"dopd_vl-{dopd_vl.__version__}-py3-none-any.whl") as wheel:
        assert {"dopd_vl/py.typed", "privileged/py.typed"} <= set(wheel.namelist())


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


def test_every_dependency_is_bounded_below_and_above(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(one for extra in extras.values() for one in extra)]:
        assert re.search(r">=[\d.]+,<[\d.]+$", requirement), requirement


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@pytest.mark.parametrize("folder", ["dopd_vl", "privileged"])
def test_what_is_imported_is_declared_and_does_not_come_along_by_chance(folder: str, project: dict[str, Any]) -> None:
    always = names_of(project["dependencies"])
    asking = names_of(project["optional-dependencies"]["annotate"])
    packages = packages_distributions()
    for path, name in imports_of(folder):
        module = name.partition(".")[0]
        if path == "dopd_vl/training/trackers.py" and module in TABLES:
            continue  # imported where a run names it and it is installed
        if module not in sys.stdlib_module_names and module not in ("dopd_vl", "privileged"):
            declared = always | asking if path == "privileged/annotators/endpoint.py" else always
            if path == "dopd_vl/core/kernels.py":
                declared = declared | {"triton"}  # each build of torch for a GPU brings the one release that it is for
            assert {canonicalize_name(package) for package in packages[module]} & declared, f"{path} imports {name}"
