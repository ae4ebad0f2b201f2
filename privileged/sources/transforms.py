r"""The small repairs that a source card may declare: a closed list of pure functions from one value to another.

Each is applied to one of our columns after the source's columns were mapped. A value that a transform cannot be applied
to is a bad record, not an error of the card.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dopd_vl.common.configuration import call_of, check_choice
from dopd_vl.common.errors import ConfigurationError, RecordError
from privileged.records.fields import MAX_JSON, is_visible
from privileged.records.grounding import without_thinking

_BOXED = re.compile(r"\\boxed\s*\{")


def parse_json(value: Any) -> Any:
    """A text that holds JSON.

    >>> parse_json('["5"]')
    ['5']
    """
    text = _text(value, "parse_json")
    if len(text) > MAX_JSON:
        raise RecordError(f"parse_json: the text has {len(text)} characters, more than the {MAX_JSON} allowed")
    try:
        return json.loads(text)
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


def after_thinking(value: Any) -> str:
    """What follows a model's thinking; a text without any stays as it is, but for space around it.

    >>> after_thinking("<think>17 is prime.</think> Yes.")
    'Yes.'
    """
    return without_thinking(_text(value, "after_thinking"))


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


def yes_no(value: Any, yes: str = "yes", no: str = "no") -> str:
    """What true and false are called.

    >>> yes_no(True), yes_no(False, no="nein")
    ('yes', 'nein')
    """
    if not isinstance(value, bool):
        raise RecordError(f"yes_no: needs true or false, not {reprlib.repr(value)}")
    return yes if value else no


def objects(value: Any, names: list[str] | None = None) -> list[dict[str, Any]]:
    """Objects as detection sets of the hub have them (bbox, category or label, and more) as our boxes.

    Args:
        names: Of categories that are numbers.

    >>> objects({"bbox": [[4, 2, 9, 9]], "category": [1], "area": [81]}, names=["cat", "dog"])
    [{'label': 'dog', 'bbox': [4, 2, 9, 9]}]
    """
    return [{"label": entry["label"], "bbox": entry["bbox"]} for entry in object_entries(value, names)]


def object_entries(value: Any, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """`label`, `bbox` and `crowd` of each object, from a mapping of lists or a list of mappings."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        columns = {name: column for name, column in value.items() if isinstance(column, list | tuple)}
        if len(columns) < len(value) or len({len(column) for column in columns.values()}) > 1:
            raise RecordError("objects: needs lists of the same length for its keys")
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
        raise RecordError(f"objects: needs a mapping of lists or a list of mappings, not {reprlib.repr(value)}")
    return [
        {"label": _object_label(entry, names), "bbox": entry.get("bbox"), "crowd": bool(entry.get("iscrowd"))}
        for entry in value
    ]


def _object_label(entry: Mapping[str, Any], names: Sequence[str] | None) -> str:
    given = [entry[name] for name in ("category", "label") if entry.get(name) is not None]
    if len(given) != 1:
        raise RecordError(f"objects: each needs a category or a label, not {reprlib.repr(dict(entry))}")
    label = given[0]
    if isinstance(label, int) and not isinstance(label, bool):
        if names is None or not 0 <= label < len(names):
            raise RecordError(f"objects: category {reprlib.repr(label)} has no name; give the names of all categories")
        label = names[label]
    if not is_visible(_text(label, "objects")):
        raise RecordError("objects: a category has no name")
    return " ".join(label.split())


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "parse_json": parse_json,
    "to_json": to_json,
    "item": item,
    "key": key,
    "strip_prefix": strip_prefix,
    "strip_suffix": strip_suffix,
    "unbox": unbox,
    "after_thinking": after_thinking,
    "template": template,
    "rename": rename,
    "join_folder": join_folder,
    "yes_no": yes_no,
    "objects": objects,
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
