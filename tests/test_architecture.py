"""Imports point one way: `privileged` knows nothing of `dopd_vl`, `core` nothing of the rest; the trainer knows TRL."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported_modules(source: str, module: str, is_package: bool = False) -> set[str]:
    """Every module that this source imports, lazily or not, by its absolute name: "a.b" for `from a import b`, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def imports_of(folder: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every Python file below a folder of the repository."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no Python file"
    for path in files:
        relative = path.relative_to(ROOT)
        is_package = path.name == "__init__.py"
        module = ".".join((relative.parent if is_package else relative.with_suffix("")).parts)
        for name in imported_modules(path.read_text(encoding="utf-8"), module, is_package):
            yield str(relative), name


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def offenders(folder: str, *forbidden: str) -> list[tuple[str, str]]:
    return [(path, name) for path, name in imports_of(folder) if any(is_within(name, package) for package in forbidden)]


def test_privileged_imports_nothing_of_dopd_vl_and_no_torch():
    # The local annotator runs a transformers model; it imports them in its functions, see test_imports.py.
    local = "privileged/annotators/local.py"
    found = offenders("privileged", "dopd_vl", "torch", "torchvision", "transformers", "trl")
    assert set(found) == {(local, "torch"), (local, "transformers")}


def test_core_imports_only_torch_and_the_standard_library():
    foreign = [
        (path, name)
        for path, name in imports_of("dopd_vl/core")
        if name.split(".")[0] not in sys.stdlib_module_names
        and not is_within(name, "torch")
        and not is_within(name, "dopd_vl.core")
    ]
    assert foreign == []


def test_objectives_import_nothing_of_those_who_use_them():
    users = ("training", "evaluation", "studies", "reporting", "nano", "cli")
    assert offenders("dopd_vl/objectives", "trl", *(f"dopd_vl.{user}" for user in users)) == []


def test_evaluation_imports_nothing_of_training():
    users = ("training", "studies", "reporting", "nano", "cli", "commands")
    assert offenders("dopd_vl/evaluation", *(f"dopd_vl.{user}" for user in users)) == []


def test_only_the_layers_under_the_trainer_know_trl():
    everywhere = [*offenders("dopd_vl", "trl"), *offenders("privileged", "trl")]
    files = ("arguments", "view_trainer", "policy_trainer", "vllm_rollouts")
    assert {path for path, _ in everywhere} == {f"dopd_vl/training/{file}.py" for file in files}


def test_each_layer_of_the_trainer_knows_nothing_of_those_above_it():
    room = "dopd_vl.training"
    found = offenders("dopd_vl/training", f"{room}.trainer", f"{room}.policy_trainer", f"{room}.view_trainer")
    known = {(path, name) for path, name in found if path.endswith("trainer.py") and name.endswith("trainer")}
    assert known == {
        ("dopd_vl/training/trainer.py", f"{room}.policy_trainer"),
        ("dopd_vl/training/policy_trainer.py", f"{room}.view_trainer"),
    }
    views = [name for path, name in imports_of("dopd_vl/training") if path == "dopd_vl/training/view_trainer.py"]
    assert not [name for name in views if is_within(name, "dopd_vl.objectives") or is_within(name, "dopd_vl.core")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import trl", {"trl"}),
        ("import trl.trainer as t", {"trl.trainer"}),
        ("from trl import SFTConfig", {"trl", "trl.SFTConfig"}),
        ("from dopd_vl import training", {"dopd_vl", "dopd_vl.training"}),
        ("def f():\n    import trl", {"trl"}),
        ("if TYPE_CHECKING:\n    from torch import Tensor", {"torch", "torch.Tensor"}),
        ("importlib.import_module('trl')", {"trl"}),
        ("from . import b", {"dopd_vl.core", "dopd_vl.core.b"}),
        ("from ..training import x", {"dopd_vl.training", "dopd_vl.training.x"}),
        ("x = 'import trl'", set()),
    ],
)
def test_the_search_finds_every_way_to_import(source: str, expected: set[str]):
    assert imported_modules(source, "dopd_vl.core.a") == expected


def test_relative_imports_of_a_package_start_at_itself():
    assert imported_modules("from .a import x", "dopd_vl.core", is_package=True) == {
        "dopd_vl.core.a",
        "dopd_vl.core.a.x",
    }
