r"""The small repairs that a source card may declare: a closed list of pure functions from one value to another.

Each is applied to one of our columns after the source's columns were mapped. A value that a transform cannot be applied
to is a bad record, not an error of the card.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from dopd_vl.common.configuration import call_of, check_choice
from dopd_vl.common.errors import ConfigurationError, RecordError

_BOXED = re.compile(r"\\boxed\s*\{")


def parse_json(value: Any) -> Any:
    """A text that holds JSON.

    >>> parse_json('["5"]')
    ['5']
    """
    try:
        return json.loads(_text(value, "parse_json"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"parse_json: {reprlib.repr(value)} is no JSON ({error})") from error


def to_json(value: Any) -> str:
    """A value as JSON text; a text stays as it is.

    >>> to_json({"inputs": ["1"], "outputs": ["2"]})
    '{"inputs": ["1"], "outputs": ["2"]}'
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def item(value: Any, index: int = 0) -> Any:
    """One entry of a list.

    >>> item(["5", "5.0"])
    '5'
    """
    if not isinstance(value, list | tuple) or not -len(value) <= index < len(value):
        raise RecordError(f"item: {reprlib.repr(value)} has no entry {index}")
    return value[index]


def key(value: Any, name: str) -> Any:
    """One value of a mapping.

    >>> key({"role": "user", "content": "2 + 2?"}, name="content")
    '2 + 2?'
    """
    if not isinstance(value, Mapping) or name not in value:
        raise RecordError(f"key: {reprlib.repr(value)} has no key {name!r}")
    return value[name]


def strip_prefix(value: Any, text: str) -> str:
    """A text without what it begins with; a text that begins otherwise stays as it is, but for space around it.

    >>> strip_prefix("Solve it. What is 2 + 2?", text="Solve it.")
    'What is 2 + 2?'
    """
    return _text(value, "strip_prefix").strip().removeprefix(text.strip()).strip()


def strip_suffix(value: Any, text: str) -> str:
    """A text without what it ends with.

    >>> strip_suffix("What is 2 + 2? Box it.", text="Box it.")
    'What is 2 + 2?'
    """
    return _text(value, "strip_suffix").strip().removesuffix(text.strip()).strip()


def unbox(value: Any) -> str:
    r"""The content of the last \boxed{...}; a text without one stays as it is.

    >>> unbox(r"\boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    text = _text(value, "unbox")
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return text
    depth = 1
    for position in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[starts[-1] : position].strip()
    raise RecordError(f"unbox: {reprlib.repr(text)} has a \\boxed without its closing brace")


def template(value: Any, text: str) -> str:
    """A text around a text: `{value}` stands for what was there. Other braces are plain.

    >>> template("2 + 2?", text="{value} Put the answer in {}.")
    '2 + 2? Put the answer in {}.'
    """
    return text.replace("{value}", _text(value, "template"))


def rename(value: Any, names: dict[str, str]) -> str:
    """Another name for a name, e.g. our task for a set's style of reward.

    >>> rename("rule", names={"rule": "math"})
    'math'
    """
    name = _text(value, "rename")
    if name not in names:
        raise RecordError(f"rename: {reprlib.repr(name)} is not among {', '.join(names)}")
    return names[name]


def join_folder(value: Any, folder: str) -> Any:
    """A folder before each of a list of image paths, or before one.

    >>> join_folder(["a.png"], folder="images")
    ['images/a.png']
    """
    if isinstance(value, list | tuple):
        return [join_folder(path, folder) for path in value]
    return f"{folder.rstrip('/')}/{_text(value, 'join_folder')}"


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "parse_json": parse_json,
    "to_json": to_json,
    "item": item,
    "key": key,
    "strip_prefix": strip_prefix,
    "strip_suffix": strip_suffix,
    "unbox": unbox,
    "template": template,
    "rename": rename,
    "join_folder": join_folder,
}
"""Every transform by its name in a card."""


def read_transform(settings: Any, where: str) -> tuple[str, Callable[[Any], Any]]:
    """The column that a card's entry is about, and its function with its arguments; ConfigurationError for wrong ones.

    An entry is e.g. `{column: prompt, do: strip_prefix, text: "Solve this."}`.
    """
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"{where}: must be a mapping with column and do, not {settings!r}")
    arguments = dict(settings)
    column, name = arguments.pop("column", None), arguments.pop("do", None)
    if not isinstance(column, str):
        raise ConfigurationError(f"{where}.column: must name one of our columns, not {column!r}")
    check_choice(str(name), TRANSFORMS, f"{where}.do")
    return column, call_of(TRANSFORMS[str(name)], arguments, where)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{what}: needs text, not {type(value).__name__}")
    return value
