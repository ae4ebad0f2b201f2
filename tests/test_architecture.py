"""The rooms in their order: what may import what, and no circle between files.

An import inside a function counts like any other: it is knowledge all the same. An import for type checkers alone does
not. `from a.b import c` leads to the file of `a.b.c` if there is one, else to that of `a.b`; that Python runs the
`__init__.py` of every package on the way is its own doing, and is not counted.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "dopd_vl.common",
    "privileged.schema",
    "privileged.rendering",
    "privileged.records",
    "privileged.model_settings",
    "privileged.audit",
    "privileged.sources",
    "privileged.annotators",
    "privileged.dataset",
    "privileged.prepare",
    "privileged",
    "dopd_vl.core",
    "dopd_vl.objectives",
    "dopd_vl.train_config",
    "dopd_vl.served",
    "dopd_vl.models",
    "dopd_vl.views",
    "dopd_vl.evaluation",
    "dopd_vl.health",
    "dopd_vl.run_folder",
    "dopd_vl.training",
    "dopd_vl.planning",
    "dopd_vl.harnesses",
    "dopd_vl.nano",
    "dopd_vl.reporting",
    "dopd_vl.studies",
    "dopd_vl.commands",
    "dopd_vl.cli",
    "dopd_vl",
)
"""From below to above: a room imports itself and rooms before it. A package's own name is its `__init__.py`."""


def imported_modules(source: str) -> set[str]:
    """What this source imports, lazily or not, by its full name: "a.b" for `from a import b`, module or not."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def files_of(folder: str) -> dict[str, Path]:
    """Module name -> file, for every Python file below a folder of the repository."""
    files = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        relative = path.relative_to(ROOT)
        files[".".join((relative.parent if path.name == "__init__.py" else relative.with_suffix("")).parts)] = path
    assert files, f"{folder} holds no Python file"
    return files


def imports_of(folder: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every Python file below a folder of the repository."""
    for path in files_of(folder).values():
        for name in imported_modules(path.read_text(encoding="utf-8")):
            yield str(path.relative_to(ROOT)), name


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def room_of(module: str) -> str:
    """The room whose name is the longest that the module's begins with; a package's `__init__.py` is a room alone."""
    return module if module in ROOMS else max((room for room in ROOMS if is_within(module, room)), key=len)


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among these that it imports."""

    def leads_to(name: str) -> str:
        while name and name not in sources:
            name = name.rpartition(".")[0]
        return name

    return {module: {leads_to(name) for name in imported_modules(code)} - {""} for module, code in sources.items()}


def circle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; empty where there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = {**files_of("dopd_vl"), **files_of("privileged")}
    return graph_of({module: path.read_text(encoding="utf-8") for module, path in files.items()})


def test_every_file_has_a_room_and_every_room_a_file(graph: dict[str, set[str]]) -> None:
    top = {".".join(module.split(".")[:2]) for module in graph}
    assert top == set(ROOMS)


def test_no_import_runs_back_up(graph: dict[str, set[str]]) -> None:
    height = {room: number for number, room in enumerate(ROOMS)}
    up = [(m, name) for m, names in graph.items() for name in names if height[room_of(m)] < height[room_of(name)]]
    assert up == []


def test_no_circle_between_files(graph: dict[str, set[str]]) -> None:
    assert circle_in(graph) == []


OURS = ("dopd_vl", "privileged")
MODELS = ("torch", "torchvision", "transformers", "trl")
IN_FUNCTIONS = {
    ("privileged/annotators/local.py", "torch"),
    ("privileged/annotators/local.py", "transformers"),
    ("privileged/annotators/judging.py", "torch"),
    ("dopd_vl/common/quiet.py", "transformers"),
}
"""What runs a transformers model for annotation, or silences that library, imports it when called and not before."""


@pytest.mark.parametrize(
    ("room", "forbidden", "but_for"),
    [
        ("dopd_vl/common", (*OURS, *MODELS), ("dopd_vl.common",)),
        ("privileged", ("dopd_vl", *MODELS), ("dopd_vl.common",)),
        ("dopd_vl/core", (*OURS, *MODELS), ("dopd_vl.core", "torch")),
        ("dopd_vl/objectives", (*OURS, *MODELS), ("dopd_vl.core", "dopd_vl.common", "dopd_vl.objectives", "torch")),
        ("dopd_vl/evaluation", ("dopd_vl.training", "trl"), ()),
        ("dopd_vl/health", ("dopd_vl.reporting", "dopd_vl.training"), ()),
    ],
)
def test_a_room_imports_nothing_of(room: str, forbidden: tuple[str, ...], but_for: tuple[str, ...]) -> None:
    found = {
        (path, name) for path, name in imports_of(room) if is_within(name, *forbidden) and not is_within(name, *but_for)
    }
    assert found == {(path, name) for path, name in IN_FUNCTIONS if path.startswith(room)}


def test_core_imports_only_torch_and_the_standard_library_and_for_a_gpu_triton() -> None:
    known = {*sys.stdlib_module_names, "torch", "dopd_vl"}
    others = {(path, name.split(".")[0]) for path, name in imports_of("dopd_vl/core")}
    assert {(path, name) for path, name in others if name not in known} == {("dopd_vl/core/kernels.py", "triton")}


def test_only_the_trainer_s_room_knows_trl() -> None:
    found = {path for room in OURS for path, name in imports_of(room) if is_within(name, "trl")}
    assert found
    assert {path for path in found if not path.startswith("dopd_vl/training/")} == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import trl", {"trl"}),
        ("import trl.trainer as t", {"trl.trainer"}),
        ("from trl import SFTConfig", {"trl.SFTConfig"}),
        ("from dopd_vl import training", {"dopd_vl.training"}),
        ("def f():\n    import trl", {"trl"}),
        ("if TYPE_CHECKING:\n    from torch import Tensor\nelse:\n    import trl", {"trl"}),
        ("importlib.import_module('trl')", {"trl"}),
        ("x = 'import trl'", set()),
    ],
)
def test_the_search_finds_every_way_to_import(source: str, expected: set[str]) -> None:
    assert imported_modules(source) == expected


def test_a_name_that_a_package_hands_on_leads_to_the_package_and_a_module_to_itself() -> None:
    sources = {
        "a": "import os",
        "a.b": "from a.c import d, x",
        "a.c": "",
        "a.c.d": "from a import c",
        "e": "import a.b",
    }
    assert graph_of(sources) == {"a": set(), "a.b": {"a.c", "a.c.d"}, "a.c": set(), "a.c.d": {"a.c"}, "e": {"a.b"}}


def test_circles_are_found() -> None:
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
    lazy = graph_of({"a": "def f():\n    import b", "b": "from c import x", "c": "import a"})
    assert set(circle_in(lazy)) == {"a", "b", "c"}
