"""From a YAML file and dotted overrides to a dataclass, by jsonargparse; every mistake named in one line.

config = read_config(TrainConfig, ["--config", "run.yaml", "--training.max_steps", "20"], "dopd-vl train")
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from dopd_vl.errors import ConfigurationError
from dopd_vl.resources import find_config
from privileged.errors import nearest

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
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=(cls.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_class_arguments(cls)
    try:
        namespace = parser.parse_args(arguments)
    except Exception as error:
        raise ConfigurationError(_one_line(str(error), file)) from error
    for misfit in _misfits(cls, namespace):
        raise ConfigurationError(_one_line(misfit, file))
    try:
        built = parser.instantiate(namespace)
        return cls(**{f.name: getattr(built, f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigurationError(_one_line(str(error), file)) from error


def as_yaml(config: Any) -> str:
    """The resolved configuration, every default written out, as YAML that `read_config` takes back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def settings_of(cls: type[Config], settings: dict[str, Any], where: str) -> Config:
    """`cls(**settings)` for a dataclass whose fields are plain values, checked by name and type.

    Raises:
        ConfigurationError: a wrong key, type or value, with `where` before its name.
    """
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ConfigurationError(f"{where}: unknown key {name!r}, {nearest(name, known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        namespace = parser.parse_object(settings)
        for misfit in _misfits(cls, namespace):
            raise ValueError(misfit)
        return cls(**{name: namespace[name] for name in known})
    except Exception as error:
        raise ConfigurationError(f"{where}: {_one_line(str(error), None)}") from error


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
    for path, line, known in _unknown_keys(cls, node, ()):
        raise ConfigurationError(f"{file}:{line}: unknown key {'.'.join(path)!r}, {nearest(path[-1], known)}")


def _unknown_keys(
    cls: type, node: yaml.MappingNode, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int, list[str]]]:
    fields = _field_types(cls)
    for key, value in node.value:
        here = (*path, str(key.value))
        if here[-1] not in fields:
            yield here, key.start_mark.line + 1, list(fields)
        elif (inner := _dataclass_in(fields[here[-1]])) is not None and isinstance(value, yaml.MappingNode):
            yield from _unknown_keys(inner, value, here)


def _check_option_keys(cls: type, arguments: list[str]) -> None:
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        path = argument[2:].partition("=")[0].split(".")
        if path[0] in ("config", "help", "print_config"):
            continue
        inner: type | None = cls
        for depth, name in enumerate(path):
            if inner is None:  # inside a free-form mapping
                break
            fields = _field_types(inner)
            if name not in fields:
                known = [".".join([*path[:depth], field]) for field in fields]
                raise ConfigurationError(f"unknown option --{'.'.join(path)}, {nearest('.'.join(path), known)}")
            inner = _dataclass_in(fields[name])


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
