"""From a YAML file and dotted overrides to a dataclass, by jsonargparse; every mistake named in one line.

config = read_config(TrainConfig, ["--config", "run.yaml", "--training.max_steps", "20"], "dopd-vl train")

An option below a mapping (`--objective.settings.regimes.LL.enabled false`) changes what it names, at any depth, and
nothing else of it. A dataclass whose mappings have dotted keys says so in a class attribute `DOTTED`: name -> how many
other keys come before those, e.g. `{"settings": 0, "cells": 1}` for `{settings: {training.seed: 1}, cells: {a: {seed:
1}}}`. Mappings that have nothing but dotted keys add up, key by key, over files and options.

A key that was renamed or removed is refused with what became of it, which its dataclass says in a class attribute
`RENAMED`: old key -> what is told of it, e.g. `{"learner_variant": "is called student_variant now"}`.
"""

import copy
import dataclasses
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_parsing_settings

from dopd_vl.common.errors import ConfigurationError, nearest, one_line
from dopd_vl.common.resources import find_config

Config = TypeVar("Config")


def read_config(cls: type[Config], argv: Sequence[str], prog: str) -> Config:
    """An instance of the dataclass `cls`.

    Args:
        argv: `--config FILE` (a path or a shipped config's name; a later file adds to an earlier one), dotted
            overrides, `--print_config`, `--help`.

    Raises:
        ConfigurationError: a wrong key, type or value; the message names it, the nearest right one, and where it stood.
    """
    arguments, files = _resolve_files(list(argv))
    for given in files:
        _check_file_keys(cls, given)
    file = files[-1] if files else None
    _check_option_keys(cls, arguments)
    arguments, inner = _options_in_mappings(cls, arguments)
    parser = _parser(cls, prog)  # type: ignore[arg-type]  # a class is hashable
    inner = [*_settings_of_files(cls, files), *inner]
    try:
        if inner:
            words = _words_about(cls, arguments, {key for key, _, _ in inner})
            states = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
            arguments += _merged(cls, _parsed(cls, prog, words, states), inner)  # type: ignore[arg-type]
        namespace = parser.parse_args(arguments)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(_one_line(str(error), file)) from error
    for misfit in _misfits(cls, namespace):
        raise ConfigurationError(_one_line(misfit, file))
    try:
        built = parser.instantiate(namespace)
        return cls(**{f.name: getattr(built, f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigurationError(_one_line(str(error), file)) from error


@functools.cache
def _parser(cls: type, prog: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    description = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:")[0]
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=description)
    parser.add_argument(
        "--config", action="config", help="A YAML file, or the name of one that ships. What comes later adds to it."
    )
    parser.add_class_arguments(cls)
    for action in parser._actions:
        if action.help == _OF_A_SECTION:
            action.help = "A YAML file with the keys below."
    return parser


_OF_A_SECTION = "Path to a configuration file."
"""What jsonargparse says of an option for a whole section."""


@functools.lru_cache(maxsize=16)
def _parsed(cls: type, prog: str, words: tuple[str, ...], states: tuple[Any, ...]) -> Namespace:
    """What files and options come to, not to be changed; `states` tell files from what they were before.

    Kept, for the cells of a study have most of theirs in common.
    """
    return _parser(cls, prog).parse_args(list(words))


def as_yaml(config: Any) -> str:
    """The resolved configuration, every default written out, as YAML that `read_config` takes back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def settings_of(cls: type[Config], settings: Mapping[str, Any], where: str) -> Config:
    """`cls(**settings)` for a dataclass whose fields are plain values, checked by name and type. Nothing is converted.

    Raises:
        ConfigurationError: a wrong key, type or value; the message begins with `where` and the key.
    """
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"{where}: must be a mapping, not {type(settings).__name__}")
    fields = [f for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    required = [f.name for f in fields if (f.default, f.default_factory) == missing]
    _check_values(_field_types(cls), required, settings, where, _renamed(cls))
    try:
        return cls(**settings)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {one_line(error)}") from error


def call_of(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Callable[[Any], Any]:
    """A function of one value with its other arguments fixed; those are checked as the fields of a dataclass are."""
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    _check_values({parameter.name: hints[parameter.name] for parameter in parameters}, required, arguments, where)
    return functools.partial(function, **arguments)


def check_choice(value: str | None, known: Iterable[str], key: str) -> None:
    """Raises: ConfigurationError: the setting `key` has a value that is none of the known ones; None is no value."""
    if value is not None and value not in known:
        raise ConfigurationError(f"{key}: {value!r} is unknown; {nearest(value, known)}")


def check_between(value: float | None, low: float, high: float, key: str) -> None:
    """Raises: ConfigurationError: a number is not within its bounds, both of which are allowed; None is no number."""
    if value is not None and not low <= value <= high:  # true for NaN
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigurationError(f"{key}: {value} is not {bounds}")


def existing_path(path: str, key: str, what: Literal["file", "folder", "file or folder"]) -> Path:
    """The path that the setting `key` names. Raises: ConfigurationError: no such thing is there."""
    found = Path(path)
    if not {"file": found.is_file(), "folder": found.is_dir()}.get(what, found.exists()):
        raise ConfigurationError(f"{key}: no {what} {path!r} (relative paths start from {Path.cwd()})")
    return found


def read_yaml(path: Path, where: str) -> Any:
    """What a YAML file holds. Raises: ConfigurationError: it cannot be read, or is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date with a 13th month
        raise ConfigurationError(f"{where} is no YAML ({one_line(error)})") from error


def check_at_least(least: float, settings: object, *names: str, where: str = "") -> None:
    """Raises: ValueError: one of these fields is smaller, or not a number; None is no mistake."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ValueError(f"{where}{name}={value} must be at least {least}")


def check_shares(settings: object, *names: str, where: str = "") -> None:
    """Raises: ValueError: one of these fields is not above 0 and at most 1."""
    for name in names:
        value = getattr(settings, name)
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{where}{name}={value} must be above 0 and at most 1")


def check_values(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Some fields of a dataclass by name and type, without making one.

    Raises:
        ConfigurationError: the message begins with `where` and the key.
    """
    _check_values(_field_types(cls), (), values, where, _renamed(cls))


def _check_values(
    types: Mapping[str, Any],
    required: Iterable[str],
    values: Mapping[str, Any],
    where: str,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    for name, value in values.items():
        if name not in types:
            raise ConfigurationError(f"{where}: {_unknown(f'key {str(name)!r}', str(name), types, renamed)}")
        if not _fits(value, types[name]):
            raise ConfigurationError(f"{where}.{name}: must be {_in_words(types[name])}, not {value!r}")
    for name in required:
        if name not in values:
            raise ConfigurationError(f"{where}.{name}: missing")


def _fits(value: Any, annotation: Any) -> bool:
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if annotation is Any:
        return True
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind in (list, tuple):
        return isinstance(value, (list, tuple)) and (not inner or all(_fits(item, inner[0]) for item in value))
    if kind is dict:
        return isinstance(value, dict) and (
            not inner or all(_fits(k, inner[0]) and _fits(value[k], inner[1]) for k in value)
        )
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _in_words(annotation: Any) -> str:
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return f"one of {', '.join(str(choice) for choice in inner)}"
    if kind in (Union, UnionType):
        return " or ".join(_in_words(one) for one in inner)
    plain = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", dict: "a mapping"}
    if kind in (list, tuple):
        return f"a list (each item {_in_words(inner[0])})" if inner else "a list"
    if kind is dict and inner:
        return f"a mapping (each value {_in_words(inner[1])})"
    return "null" if kind is type(None) else plain.get(kind, getattr(kind, "__name__", str(kind)))


def _resolve_files(arguments: list[str]) -> tuple[list[str], list[Path]]:
    files = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != "--config":
            continue
        if not equals:
            if position + 1 >= len(arguments):
                raise ConfigurationError("--config needs a file")
            value = arguments[position + 1]
        file = find_config(value)
        files.append(file)
        if equals:
            arguments[position] = f"--config={file}"
        else:
            arguments[position + 1] = str(file)
    return arguments, files


def _check_file_keys(cls: type, file: Path) -> None:
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise ConfigurationError(f"{file}: not readable as YAML: nested too deeply") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror})") from error
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError(f"{file}: expected keys and values, got a {node.tag.rsplit(':', 1)[-1]}")
    for line, why in _unknown_keys(cls, node, ""):
        raise ConfigurationError(f"{file}:{line}: {why}")


def _unknown_keys(cls: type, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[int, str]]:
    fields = _field_types(cls)
    for key, value in node.value:
        name = str(key.value)
        if name not in fields:
            told = _unknown(f"key {prefix + name!r}", name, fields, _renamed(cls), prefix)
            yield key.start_mark.line + 1, told
        elif (inner := _dataclass_in(fields[name])) is not None and isinstance(value, yaml.MappingNode):
            yield from _unknown_keys(inner, value, f"{prefix}{name}.")


def _check_option_keys(cls: type, arguments: list[str]) -> None:
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        path = argument[2:].partition("=")[0].split(".")
        if path[0] in ("config", "print_config") or path[-1] == "help":
            continue
        inner: type | None = cls
        for depth, name in enumerate(path):
            if inner is None:  # inside a free-form mapping
                break
            fields = _field_types(inner)
            if name not in fields:
                prefix = "".join(f"{above}." for above in path[:depth])
                told = _unknown(f"option --{'.'.join(path)}", name, fields, _renamed(inner), prefix)
                raise ConfigurationError(told)
            inner = _dataclass_in(fields[name])


Inner = tuple[str, list[str], Any]
"""The dotted key of a mapping, the keys below it, and a value for what they name"""


def _options_in_mappings(cls: type, arguments: list[str]) -> tuple[list[str], list[Inner]]:
    """The options that are for jsonargparse, and those that lead into a mapping of free keys."""
    others: list[str] = []
    found: list[Inner] = []
    words = iter(enumerate(arguments))
    for place, argument in words:
        option, equals, value = argument.partition("=")
        path = option[2:].split(".")
        at, kind = _mapping_on(cls, path) if option.startswith("--") else (0, None)
        whole = at == len(path)
        if kind is None or (whole and _dotted(cls, path) != 0):
            if whole:  # takes the place of what stood before
                found = [one for one in found if one[0] != ".".join(path)]
            others.append(argument)
            continue
        if not equals:
            if place + 1 >= len(arguments) or arguments[place + 1].startswith("--"):
                raise ConfigurationError(f"{option}: a value is missing")
            value = next(words)[1]
        key, below = ".".join(path[:at]), path[at:]
        loaded = value if _leaf(kind, len(below)) is str else _loaded(value)
        if whole and not isinstance(loaded, dict):
            others += [option, value]  # whose refusal is jsonargparse's
        else:
            found.append((key, below, loaded))
    return others, found


def _words_about(cls: type, arguments: list[str], keys: set[str]) -> tuple[str, ...]:
    """Of a command line: the files, the options for one of these keys or for what it is in, and what has no default."""
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    required = {f.name for f in dataclasses.fields(cls) if (f.default, f.default_factory) == missing}
    kept, takes_value = [], False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if option.startswith("--"):
            about = option == "--config" or any(f"{key}.".startswith(f"{option[2:]}.") for key in keys)
            about = about or option[2:].partition(".")[0] in required
            takes_value = about and not equals
            if about:
                kept.append(argument)
        elif takes_value:
            kept.append(argument)
    return tuple(kept)


def _mapping_on(cls: type, path: list[str]) -> tuple[int, Any]:
    """How many keys of a path lead to a mapping of free keys, and its annotation; None where none is on the way."""
    inner: type | None = cls
    for depth, name in enumerate(path, 1):
        annotation = _field_types(inner).get(name) if inner is not None else None
        if get_origin(annotation) is dict:
            return depth, annotation
        inner = _dataclass_in(annotation)
    return 0, None


def _leaf(annotation: Any, depth: int) -> Any:
    for _ in range(depth):
        annotation = get_args(annotation)[1] if get_origin(annotation) is dict else Any
    return annotation


def _loaded(text: str) -> Any:
    """A value as jsonargparse would have read it; what is no YAML is a text."""
    try:
        return get_loader("yaml")(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _dotted(cls: type, path: list[str]) -> int | None:
    return getattr(cls, "DOTTED", {}).get(path[0]) if len(path) == 1 else None


def _settings_of_files(cls: type, files: list[Path]) -> Iterator[Inner]:
    """Mappings of dotted keys alone, file after file."""
    for name in (name for name, above in getattr(cls, "DOTTED", {}).items() if above == 0 and len(files) > 1):
        for file in files:
            found = _loaded(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get(name), dict):
                yield name, [], found[name]


def _merged(cls: type, before: Namespace, inner: list[Inner]) -> Iterator[str]:
    """The mappings that options lead into, each whole and as one option."""
    mappings: dict[str, dict[str, Any]] = {}
    for key, below, value in inner:
        if key not in mappings:
            mappings[key] = copy.deepcopy(before.get(key) or {})
        names = _dotted(cls, key.split("."))
        for path, one in [([name], one) for name, one in value.items()] if not below else [(below, value)]:
            _put(mappings[key], path, one, names)
    for key, mapping in mappings.items():
        try:
            yield f"--{key}={json.dumps(mapping, allow_nan=False)}"
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{key}: a value cannot be used ({one_line(error)})") from error


def _put(mapping: dict[str, Any], path: list[str], value: Any, names: int | None) -> None:
    """Change what the path names; `names` as in `DOTTED`, None for keys without dots."""
    if names == 0:
        key = ".".join(path)
        mapping.pop(key, None)  # later ones win, and come last
        mapping[key] = value
        return
    # The longest key that is there, since a cell's name may have dots.
    known = [end for end in range(len(path), 0, -1) if ".".join(path[:end]) in mapping]
    end = known[0] if known else 1
    key, rest = ".".join(path[:end]), path[end:]
    if not rest:
        mapping[key] = value
        return
    if not isinstance(mapping.get(key), dict):
        mapping[key] = {}
    _put(mapping[key], rest, value, None if names is None else names - 1)


def _misfits(cls: type, namespace: Namespace, prefix: str = "") -> Iterator[str]:
    """What jsonargparse lets pass: null for what may not be null, and other things than mappings for sections."""
    for name, annotation in _field_types(cls).items():
        value, key = namespace[name], prefix + name
        if value is None:
            if annotation is not Any and type(None) not in get_args(annotation):
                yield f"{key}: may not be null; leave it out for its default"
        elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            if isinstance(value, Namespace):
                yield from _misfits(annotation, value, f"{key}.")
            else:
                yield f"{key}: expected keys and values, got a {type(value).__name__}"


def _unknown(shown: str, name: str, known: Iterable[str], renamed: Mapping[str, str], prefix: str = "") -> str:
    """What is told of a key that is none; `prefix` are the keys above it, each with its dot."""
    if name in renamed:
        return f"{shown} {renamed[name]}"
    return f"unknown {shown}, {nearest(prefix + name, [prefix + one for one in known])}"


def _renamed(cls: type) -> Mapping[str, str]:
    return getattr(cls, "RENAMED", {})


def _field_types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _dataclass_in(annotation: Any) -> type | None:
    """The dataclass that an annotation such as `Lora | None` holds."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _one_line(message: str, file: Path | None) -> str:
    text = " ".join(message.split())
    key = re.search(r'Parser key "([^"]+)":\s*(.*)', text)
    if key:
        text = f"{key.group(1)}: {key.group(2)}"
    return f"{file}: {text}" if file is not None else text
