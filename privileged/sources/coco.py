"""COCO annotations as questions: templates make the prompt and the answer, the annotated boxes are the privilege."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopd_vl.common.configuration import existing_path, settings_of
from dopd_vl.common.errors import ConfigurationError, RecordError
from privileged.sources.questions import asked, read_questions, record_id


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
            coco = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{where} is no JSON: {error}") from error
        for key in ("images", "annotations", "categories"):
            entries = coco.get(key) if isinstance(coco, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ConfigurationError(f"{where} has no list {key!r} of mappings: it is no COCO file")
        self._labels = {_key(entry, "id"): str(entry.get("name", "")) for entry in coco["categories"]}
        self._images = {_key(entry, "id"): entry for entry in coco["images"]}
        self._boxes: dict[Any, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        crowds: set[tuple[Any, Any]] = set()
        # An item is (question, image, category or None), or the reason why an annotation belongs to no image.
        self._items: list[tuple[int, Any, Any] | str] = []
        for number, entry in enumerate(coco["annotations"]):
            image, category = _key(entry, "image_id"), _key(entry, "category_id")
            if image not in self._images or category not in self._labels:
                self._items.append(f"annotation {number}: no such image {image!r} or category {category!r}")
            elif entry.get("iscrowd") and not self._options.crowd:
                crowds.add((image, category))
            else:
                self._boxes[image][category].append(entry.get("bbox"))
        for image, category in crowds:
            self._boxes[image].pop(category, None)
        for image in self._images:
            crowded = any((image, category) in crowds for category in self._labels)
            asks = asked(self._questions, self._boxes[image], whole=not crowded)
            self._items += [(number, image, category) for number, category in asks]

    def fingerprint(self) -> str:
        return f"coco:{self._digest}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        item = self._items[index]
        if isinstance(item, str):
            raise RecordError(item)
        number, image_id, category = item
        question, entry = self._questions[number], self._images[image_id]
        categories = self._boxes[image_id] if category is None else {category: self._boxes[image_id][category]}
        boxes = [
            {"label": self._labels[key], "bbox": _xyxy(bbox)} for key, bboxes in categories.items() for bbox in bboxes
        ]
        raw: dict[str, Any] = {
            "id": record_id(self.name, image_id, category, number),
            "images": [entry.get("file_name")],
            "box_format": "xyxy",
            **question.ask(boxes),
        }
        if "width" in entry and "height" in entry:
            raw["image_sizes"] = [[entry["width"], entry["height"]]]
        return raw


def _key(entry: Mapping[str, Any], name: str) -> Any:
    value = entry.get(name)
    return value if isinstance(value, int | str) else None


def _xyxy(bbox: Any) -> Any:
    """COCO gives [x, y, width, height]. What is no such list is passed on for `parse_record` to refuse."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
        return bbox
    x, y, width, height = bbox
    return [x, y, x + width, y + height]
