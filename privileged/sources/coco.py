"""COCO annotations as questions: templates make the prompt and the answer, the annotated boxes are the privilege."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dopd_vl.common.configuration import existing_path, settings_of
from dopd_vl.common.errors import ConfigurationError, RecordError, nearest
from privileged.audit.audit import Tally
from privileged.records.fields import MAX_ID, is_visible, item_list, unique_keys
from privileged.sources.questions import asked, read_questions, record_id
from privileged.sources.tables import Numbered

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
        questions_file: A JSONL file (or a .json array) of questions of one's own, each about the image that its
            `images` names, with the boxes of that image as privilege; those of its `labels` alone where it has them.
        columns: Which columns of that file fill which of ours, as for jsonl.
    """

    annotations: str
    images: str
    questions: list[Any] = field(default_factory=list)
    crowd: bool = False
    questions_file: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


class CocoSource:
    """A record for each question and image (or category of an image). The annotation file is held in memory.

    Args:
        own: The records of `questions_file`.
    """

    def __init__(self, options: Mapping[str, Any], own: Numbered | None = None):
        self._options = settings_of(CocoOptions, options, "source.options")
        self._path = existing_path(self._options.annotations, "source.options.annotations", "file")
        self.image_root: Path | None = existing_path(self._options.images, "source.options.images", "folder")
        self.name = self._path.stem
        self._own = own
        self._questions = read_questions(self._options.questions) if own is None or self._options.questions else []
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
        # An item is (question, image, category or None), the number of a question of one's own, or the reason why an
        # annotation belongs to no image.
        self._items: list[tuple[int, Any, Any] | int | str] = []
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
        self._items += range(0 if self._own is None else len(self._own))
        self._named: dict[str, list[Any]] = defaultdict(list)  # the images whose files have a name, whatever the folder
        for image, entry in self._images.items() if self._own is not None else ():
            self._named[PurePosixPath(str(entry.get("file_name"))).name].append(image)

    def fingerprint(self) -> str:
        return f"coco:{self._digest}" + ("" if self._own is None else f":{self._own.fingerprint()}")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        item = self._items[index]
        if isinstance(item, str):
            raise RecordError(item, self._path.name)
        if isinstance(item, int):
            return self._own_record(item)
        number, image_id, category = item
        keys = [category] if category in self._boxes[image_id] else self._boxes[image_id]
        return {
            "id": record_id(self.name, image_id, category, number),
            **self._picture(image_id),
            **self._questions[number].ask(self._objects(image_id, keys), self._labels.get(category)),
        }

    def _picture(self, image: Any) -> dict[str, Any]:
        entry = self._images[image]
        picture: dict[str, Any] = {"images": [entry.get("file_name")], "box_format": "xyxy"}
        if entry.get("width") is not None and entry.get("height") is not None:
            picture["image_sizes"] = [[entry["width"], entry["height"]]]
        return picture

    def _objects(self, image: Any, categories: Iterable[Any]) -> list[dict[str, Any]]:
        boxes = self._boxes[image]
        return [{"label": self._labels[key], "bbox": _xyxy(bbox)} for key in categories for bbox in boxes[key]]

    def _own_record(self, number: int) -> dict[str, Any]:
        """A question of one's own, with the boxes of its image."""
        assert self._own is not None
        raw = self._own[number]
        image = self._image_of(raw.get("images"))
        carried = raw.get("privileged")
        if raw.get("privileged.boxes") or (isinstance(carried, Mapping) and carried.get("boxes")):
            raise RecordError(f"the question brings boxes of its own, beside those of {self._path.name}")
        categories: list[Any] = list(self._boxes[image])
        if raw.get("labels") is not None:
            ids = {label: key for key, label in self._labels.items()}
            for label in item_list(raw["labels"], "labels"):
                if not isinstance(label, str) or label not in ids:
                    raise RecordError(f"labels holds {reprlib.repr(label)}; {nearest(str(label)[:MAX_ID], ids)}")
            categories = [key for key in categories if self._labels[key] in raw["labels"]]
        given = raw.get("id")
        return {
            **raw,
            "id": record_id(self.name, image, f"q{number}") if given is None else given,
            **self._picture(image),
            "privileged.boxes": self._objects(image, categories),
        }

    def _image_of(self, named: Any) -> Any:
        """The image that a question names by its file, with or without the folders that it is in."""
        names = named if isinstance(named, list) else [named]
        if len(names) != 1 or not isinstance(names[0], str):
            raise RecordError(f"images must name one image of {self._path.name}, not {reprlib.repr(named)}")
        parts = PurePosixPath(names[0].replace("\\", "/")).parts
        found = []
        for image in self._named.get(parts[-1] if parts else "", ()):
            known = PurePosixPath(str(self._images[image].get("file_name"))).parts
            if known == parts:
                return image
            shorter = min(len(known), len(parts))
            if known[-shorter:] == parts[-shorter:]:
                found.append(image)
        if len(found) != 1:
            count = f"{len(found)} images" if found else "no image"
            raise RecordError(f"{self._path.name} has {count} of the file {names[0]!r:.200}")
        return found[0]


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
