"""COCO annotations as questions: templates make the prompt and the answer, the annotated boxes are the privilege."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vl.common.configuration import existing_path, settings_of
from dopd_vl.common.errors import ConfigurationError, RecordError
from privileged.audit.audit import Tally
from privileged.records.fields import is_visible, unique_keys
from privileged.sources.questions import asked, read_questions, record_id

EXACT = 2.0**53
"""From here on two whole numbers can be one float."""


@dataclass
class CocoOptions:
    """COCO object annotations and the folder of their images.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are relative to.
        questions: A list of settings of `questions.Question`.
        crowd: Keep categories that an image marks as a crowd; left out by default, since their count is not exact.
    """

    annotations: str
    images: str
    questions: list[Any]
    crowd: bool = False


class CocoSource:
    """A record for each question and image (or category of an image). The annotation file is held in memory."""

    def __init__(self, options: Mapping[str, Any]):
        self._options = settings_of(CocoOptions, options, "source.options")
        self._path = existing_path(self._options.annotations, "source.options.annotations", "file")
        self.image_root: Path | None = existing_path(self._options.images, "source.options.images", "folder")
        self.name = self._path.stem
        self._questions = read_questions(self._options.questions)
        data = self._path.read_bytes()
        self._digest = hashlib.sha256(data).hexdigest()
        self._read(data)

    def _read(self, data: bytes) -> None:
        where = f"source.options.annotations: {self._path}"
        try:
            coco = json.loads(data, object_pairs_hook=unique_keys)
        except RecordError as error:
            raise ConfigurationError(f"{where}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{where} is no JSON: {error}") from error
        for key in ("images", "annotations", "categories"):
            entries = coco.get(key) if isinstance(coco, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ConfigurationError(f"{where} has no list {key!r} of mappings: it is no COCO file")
        self.found = Tally()
        self._images = _by_id(coco["images"], "images", where)
        names: dict[str, Any] = {}  # of each category the id that stands for all of its name
        same: dict[Any, Any] = {}
        for key, entry in _by_id(coco["categories"], "categories", where).items():
            name = _name(entry, where)
            same[key] = names.setdefault(name, key)
            if same[key] != key:
                self.found.note(name, ["categories_merged"])
        self._labels = {key: name for name, key in names.items()}
        _check_unique((entry.get("file_name") for entry in coco["images"]), "images", "file_name", where)
        _check_unique((_key(entry, "id") for entry in coco["annotations"]), "annotations", "id", where)
        self._boxes: dict[Any, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        crowds: set[tuple[Any, Any]] = set()
        partial = set()  # images of which not every object is known
        # An item is (question, image, category or None), or the reason why an annotation belongs to no image.
        self._items: list[tuple[int, Any, Any] | str] = []
        for number, entry in enumerate(coco["annotations"]):
            image, category = _key(entry, "image_id"), same.get(_key(entry, "category_id"))
            if image not in self._images or category is None:
                given = f"{entry.get('image_id')!r:.40} or category {entry.get('category_id')!r:.40}"
                self._items.append(f"annotations[{number}] of {self._path.name}: no such image {given}")
                partial.add(image)
            elif entry.get("iscrowd") and not self._options.crowd:
                crowds.add((image, category))
            else:
                self._boxes[image][category].append(entry.get("bbox"))
        for image, entry in self._images.items():  # as LVIS has them
            for category in _keys(entry, "not_exhaustive_category_ids", same) if not self._options.crowd else ():
                crowds.add((image, category))
        for image, category in sorted(crowds, key=str):
            self._boxes[image].pop(category, None)
            partial.add(image)
            self.found.note(f"{self._images[image].get('file_name')}: {self._labels[category]}", ["crowd_left_out"])
        kinds = Counter(category for boxes in self._boxes.values() for category in boxes)
        for image, entry in self._images.items():
            if not self._boxes[image]:
                self.found.note(str(entry.get("file_name")), ["image_without_objects"])
            absent = _keys(entry, "neg_category_ids", same) if "neg_category_ids" in entry else kinds
            known = {category: kinds[category] for category in absent if kinds[category]}
            asks = asked(self._questions, self._boxes[image], known, str(image), whole=image not in partial)
            self._items += [(number, image, category) for number, category in asks]

    def fingerprint(self) -> str:
        return f"coco:{self._digest}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        item = self._items[index]
        if isinstance(item, str):
            raise RecordError(item, self._path.name)
        number, image_id, category = item
        question, entry = self._questions[number], self._images[image_id]
        categories: Mapping[Any, list[Any]] = self._boxes[image_id]
        if category in categories:
            categories = {category: categories[category]}
        boxes = [
            {"label": self._labels[key], "bbox": _xyxy(bbox)} for key, bboxes in categories.items() for bbox in bboxes
        ]
        raw: dict[str, Any] = {
            "id": record_id(self.name, image_id, category, number),
            "images": [entry.get("file_name")],
            "box_format": "xyxy",
            **question.ask(boxes, self._labels.get(category)),
        }
        if entry.get("width") is not None and entry.get("height") is not None:
            raw["image_sizes"] = [[entry["width"], entry["height"]]]
        return raw


def _by_id(entries: list[dict[str, Any]], kind: str, where: str) -> dict[Any, dict[str, Any]]:
    """The entries by their ids, each of which must be there and be one entry's alone."""
    keys = [_key(entry, "id") for entry in entries]
    for number, key in enumerate(keys):
        if key is None:
            raise ConfigurationError(f"{where}: {kind}[{number}] has no id that is a whole number or a text")
    _check_unique(keys, kind, "id", where)
    return dict(zip(keys, entries, strict=True))


def _check_unique(values: Iterable[Any], kind: str, key: str, where: str) -> None:
    """Raise ConfigurationError when two entries of a list have the same value; None is none."""
    first: dict[Any, int] = {}
    for number, value in enumerate(values):
        if isinstance(value, int | str) and first.setdefault(value, number) != number:
            raise ConfigurationError(
                f"{where}: {kind}[{first[value]}] and {kind}[{number}] have the same {key} {value!r}"
            )


def _key(entry: Mapping[str, Any], name: str) -> int | str | None:
    """An id: whole numbers in any spelling (1, 1.0, "1") are the same, other texts are themselves.

    >>> _key({"id": 1.0}, "id"), _key({"id": "1"}, "id"), _key({"id": "a-1"}, "id"), _key({"id": True}, "id")
    (1, 1, 'a-1', None)
    """
    value = entry.get(name)
    if isinstance(value, str):
        whole = re.fullmatch(r"([+-]?\d{1,30})(?:\.0*)?", value.strip(), re.ASCII)
        return int(whole[1]) if whole else value or None
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _keys(entry: Mapping[str, Any], name: str, same: Mapping[Any, Any]) -> list[Any]:
    """Categories in a list of an image's entry, each once; none where it is no list."""
    given = entry.get(name)
    keys = [_key({"id": value}, "id") for value in given] if isinstance(given, list) else []
    return list(dict.fromkeys(same[key] for key in keys if key in same))


def _name(category: Mapping[str, Any], where: str) -> str:
    name = category.get("name")
    text = " ".join(str(name).split()) if isinstance(name, str | int | float) and not isinstance(name, bool) else ""
    if not is_visible(text):
        raise ConfigurationError(f"{where}: the category of id {category['id']!r} has no name, but {name!r:.40}")
    return text


def _xyxy(bbox: Any) -> Any:
    """COCO gives [x, y, width, height]. What is no such list is passed on for `parse_record` to refuse."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        return bbox
    x, y, width, height = bbox
    return [x, y, x + width, y + height]
