"""Whatever stands in a configuration file or among the options: settings come out, or one line that says why not."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reasons import assert_one_line

from dopd_vl.common.configuration import as_yaml, read_config, settings_of
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.objectives.dopd import Dopd
from dopd_vl.studies.config import StudyConfig
from dopd_vl.train_config import TrainConfig
from privileged.prepare.config import PrepareConfig

CONFIGS = (TrainConfig, PrepareConfig, EvaluateConfig, StudyConfig)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
KEYS = st.text(max_size=6) | st.integers(-2, 2) | st.none() | st.booleans()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def paths_of(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    found = []
    for field in dataclasses.fields(cls):
        found.append(prefix + field.name)
        inner = get_type_hints(cls)[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found += paths_of(inner, f"{prefix}{field.name}.")
    return found


PATHS = {cls: paths_of(cls) for cls in CONFIGS}


def assert_settings_or_one_line(cls: type, argv: list[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_config(cls, argv, "test")
        except UserError as error:
            assert_one_line(error)
            return None


@st.composite
def known_keys_with_any_values(draw: st.DrawFn) -> tuple[type, dict[str, Any]]:
    cls = draw(st.sampled_from(CONFIGS))
    tree: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(PATHS[cls]), min_size=1, max_size=3)):
        *above, last = path.split(".")
        node = tree
        for name in above:
            below = node.setdefault(name, {})
            if not isinstance(below, dict):
                below = node[name] = {}
            node = below
        node[last] = draw(VALUES)
    return cls, tree


@FEW
@given(case=known_keys_with_any_values())
@example(case=(TrainConfig, {"health": None}))
@example(case=(PrepareConfig, {"source": None, "output": "x"}))
@example(case=(EvaluateConfig, {"sampling": {"samples": None}}))
@example(case=(EvaluateConfig, {"sampling": []}))
def test_any_value_of_any_key_is_taken_or_refused(case: tuple[type, dict[str, Any]], tmp_path: Path) -> None:
    cls, tree = case
    file = tmp_path / "fuzz.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    config = assert_settings_or_one_line(cls, ["--config", str(file)])
    if config is not None:
        as_yaml(config)


@FEW
@given(
    cls=st.sampled_from(CONFIGS),
    content=st.binary(max_size=40)
    | st.text("abmodel:{}[]&*!<>|-?%@`'\"\n\t #,.~0123=", max_size=40).map(str.encode)
    | VALUES.map(lambda value: yaml.safe_dump(value).encode()),
)
@example(cls=TrainConfig, content=b"[" * 3000)
@example(cls=TrainConfig, content=b"model: " + b"{a: " * 3000)
@example(cls=TrainConfig, content=b"trl: &a {b: *a}")
@example(cls=TrainConfig, content=b"trl: &a [*a]")
@example(cls=TrainConfig, content=b"? [model]\n: 1")
@example(cls=TrainConfig, content=b"? {a: b}\n: 1")
@example(cls=TrainConfig, content=b"<<: {seed: 1}")
@example(cls=TrainConfig, content=b"seed: 1\nseed: 2")
@example(cls=TrainConfig, content=b"--- {}\n--- {}")
@example(cls=TrainConfig, content=b"seed: !!python/object/apply:os.system ['true']")
@example(cls=TrainConfig, content=b"seed: 2026-13-45")
@example(cls=TrainConfig, content=b"trl: {a: 2026-13-45}")
@example(cls=TrainConfig, content=b"trl: {[a]: 1}")
@example(cls=TrainConfig, content=b"seed: " + b"9" * 5000)
@example(cls=TrainConfig, content=b"\xff\xfe\x00")
@example(cls=TrainConfig, content=b"a: \x00")
def test_any_bytes_in_a_file_are_read_or_refused(cls: type, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_bytes(content)
    assert_settings_or_one_line(cls, ["--config", str(file)])


OPTION_VALUES = st.text(max_size=10) | VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True).strip())


@st.composite
def options(draw: st.DrawFn) -> tuple[type, list[str]]:
    cls = draw(st.sampled_from(CONFIGS))
    words = []
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(PATHS[cls])) + draw(st.sampled_from(["", "", ".x", ".", "+", ".a.b"]))
        value = draw(OPTION_VALUES)
        words += draw(st.sampled_from([[f"--{path}", value], [f"--{path}={value}"], [f"--{path}"], [value]]))
    # Those that end the program by design.
    return cls, [word for word in words if word.split("=")[0] not in ("-h", "--help", "--print_config")]


@FEW
@given(options())
@example((TrainConfig, ["--"]))
@example((TrainConfig, ["--", "x"]))
@example((TrainConfig, ["--="]))
@example((TrainConfig, ["-x"]))
@example((TrainConfig, ["--seed"]))
@example((TrainConfig, ["--config"]))
@example((TrainConfig, ["--config", ""]))
@example((TrainConfig, ["--config", "\0"]))
@example((TrainConfig, ["--config", "x" * 5000]))
@example((TrainConfig, ["--config=/"]))
@example((TrainConfig, ["--config", "https://127.0.0.1/x.yaml"]))
@example((TrainConfig, ["--model", "[[["]))
@example((TrainConfig, ["--trl", "{" * 3000]))
@example((TrainConfig, ["--trl", "&a {b: *a}"]))
@example((TrainConfig, ["--trl.a", "[" * 3000]))
@example((TrainConfig, ["--seed", "9" * 5000]))
@example((TrainConfig, ["--seed", "\ud800"]))
def test_any_options_are_taken_or_refused(case: tuple[type, list[str]]) -> None:
    assert_settings_or_one_line(*case)


@FEW
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Dopd)]) | st.text(max_size=5), VALUES))
def test_any_settings_of_an_objective_are_taken_or_refused(given_settings: dict[str, Any]) -> None:
    try:
        assert isinstance(settings_of(Dopd, given_settings, "objective.settings"), Dopd)
    except ConfigurationError as error:
        assert_one_line(error, "objective.settings")


@pytest.mark.parametrize("word", ["--help=x", "--print_config=x"])
def test_a_misused_flag_is_one_line(word: str) -> None:
    with pytest.raises(UserError):
        read_config(TrainConfig, [word], "test")


def test_null_is_refused_by_its_key_where_nothing_may_be_null(tmp_path: Path) -> None:
    file = tmp_path / "null.yaml"
    for text, key in (("training: {max_steps: null}", "training.max_steps"), ("health: null", "health")):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=f"{key}: may not be null"):
            read_config(TrainConfig, ["--config", str(file)], "test")
    file.write_text("model: {teacher: null, lora: null}\ndata: {eval: null}")
    assert read_config(TrainConfig, ["--config", str(file)], "test").model.teacher is None
    with pytest.raises(ConfigurationError, match=r"objective\.settings\.top_k: must be .*, not None"):
        settings_of(Dopd, {"top_k": None}, "objective.settings")
