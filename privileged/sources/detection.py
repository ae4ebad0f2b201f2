"""YOLO and Pascal VOC folders as questions, one image at a time.

The readers of single files are supervision's (`yolo_annotations_to_detections`, `detections_from_xml_obj`), not its
loaders (`sv.DetectionDataset.from_yolo`, `from_pascal_voc`): those hold the boxes of all images in memory, and one bad
file ends them. Here only which labels each image has is held, and a bad file is one bad record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from dopd_vl.common.configuration import existing_path, read_yaml, settings_of
from dopd_vl.common.errors import ConfigurationError, RecordError
from dopd_vl.common.quiet import import_supervision
from privileged.sources.questions import asked, read_questions, record_id

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_ANNOTATION = 16 * 1024 * 1024
"""Bytes of one annotation file."""
MAX_DIGITS = 9
"""Digits of the number of a class."""


@dataclass
class YoloOptions:
    """A folder of images, a folder of YOLO text files of the same names, and the names of the classes.

    Args:
        images: The folder of images, without sub-folders.
        labels: The folder of annotations: `street.txt` belongs to `street.jpg`. A line is a class number and a box
            (centre and size, as shares of the image) or a polygon, whose bounding box is taken.
        names: The `data.yaml` with the list or mapping `names`.
        questions: A list of settings of `questions.Question`.
    """

    images: str
    labels: str
    names: str
    questions: list[Any]


@dataclass
class VocOptions:
    """A folder of images and a folder of Pascal VOC XML files of the same names.

    Args:
        images: The folder of images, without sub-folders.
        annotations: The folder of annotations: `street.xml` belongs to `street.jpg`. Corners count from 1, as in the
            VOC devkit: `xmin` 1 is the left edge.
        questions: A list of settings of `questions.Question`.
    """

    images: str
    annotations: str
    questions: list[Any]


class _ObjectFolders:
    """A record for each question and image (or label of an image); images without an annotation file have none."""

    kind = ""
    suffix = ""
    box_format = "xyxy"

    def __init__(self, images: str, annotations: str, annotations_key: str, questions: list[Any]):
        self._questions = read_questions(questions)
        self.image_root: Path | None = existing_path(images, "source.options.images", "folder")
        self._annotations = existing_path(annotations, f"source.options.{annotations_key}", "folder")
        self.name = self.image_root.resolve().name
        self._images = sorted(
            path.name for path in self.image_root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        digest = hashlib.sha256(self._identity().encode())
        # An item is (image, question, label or None), or (image, reason why its annotations cannot be read).
        self._items: list[tuple[int, int, str | None] | tuple[int, str]] = []
        for number, name in enumerate(self._images):
            path = self._annotation_path(name)
            if not path.is_file():
                continue
            size = (self.image_root / name).stat().st_size
            try:
                data = _read(path)
                digest.update(f"{name}:{size}:".encode() + hashlib.sha256(data).digest())
                labels = set(self._labels(data))
            except RecordError as error:
                digest.update(f"{name}:{size}:{error}".encode())
                self._items.append((number, str(error)))
                continue
            self._items += [(number, *ask) for ask in asked(self._questions, sorted(labels))]
        self._digest = digest.hexdigest()

    def _annotation_path(self, image: str) -> Path:
        return self._annotations / f"{Path(image).stem}{self.suffix}"

    def _identity(self) -> str:
        """What besides the files decides the records."""
        return self.kind

    def _labels(self, data: bytes) -> Iterator[str]:
        raise NotImplementedError

    def _detections(self, data: bytes) -> Any:
        """supervision's Detections, as many as labels; a ValueError for what it cannot read."""
        raise NotImplementedError

    def _boxes(self, data: bytes) -> list[dict[str, Any]]:
        labels = list(self._labels(data))
        import_supervision()
        try:
            found = self._detections(data)
        except ValueError as error:
            raise RecordError(f"annotations: {error}") from error
        return [{"label": label, "bbox": box} for label, box in zip(labels, found.xyxy.tolist(), strict=True)]

    def fingerprint(self) -> str:
        return f"{self.kind}:{self._digest}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        item = self._items[index]
        name = self._images[item[0]]
        if len(item) == 2:
            raise RecordError(f"annotations of {name}: {item[1]}")
        _, number, label = item
        boxes = self._boxes(_read(self._annotation_path(name)))
        if label is not None:
            boxes = [box for box in boxes if box["label"] == label]
        return {
            "id": record_id(self.name, Path(name).stem, label, number),
            "images": [name],
            "box_format": self.box_format,
            **self._questions[number].ask(boxes),
        }


class YoloSource(_ObjectFolders):
    """YOLO text files."""

    kind, suffix, box_format = "yolo", ".txt", "xyxy_1"

    def __init__(self, options: Mapping[str, Any]):
        settings = settings_of(YoloOptions, options, "source.options")
        self._names = _class_names(settings.names)
        super().__init__(settings.images, settings.labels, "labels", settings.questions)

    def _identity(self) -> str:
        return f"{self.kind}:{self._names}"

    def _labels(self, data: bytes) -> Iterator[str]:
        for line in _lines(data):
            yield self._label(line.split()[0])

    def _label(self, text: str) -> str:
        # The length first: Python refuses to read an integer of thousands of digits.
        if len(text) > MAX_DIGITS or not text.isdecimal() or int(text) not in self._names:
            raise RecordError(f"class {text[:20]!r} is not among the {len(self._names)} names")
        return self._names[int(text)]

    def _detections(self, data: bytes) -> Any:
        from supervision.dataset.formats.yolo import yolo_annotations_to_detections

        return yolo_annotations_to_detections(_lines(data), (1, 1), with_masks=False)


class VocSource(_ObjectFolders):
    """Pascal VOC XML files."""

    kind, suffix = "voc", ".xml"

    def __init__(self, options: Mapping[str, Any]):
        settings = settings_of(VocOptions, options, "source.options")
        super().__init__(settings.images, settings.annotations, "annotations", settings.questions)

    def _labels(self, data: bytes) -> Iterator[str]:
        for entry in _xml(data).findall("object"):
            name = (entry.findtext("name") or "").strip()
            if not name:
                raise RecordError("an object has no name")
            yield name

    def _detections(self, data: bytes) -> Any:
        from supervision.dataset.formats.pascal_voc import detections_from_xml_obj

        root = _xml(data)
        for entry in root.findall("object"):
            for polygon in entry.findall("polygon"):  # its mask would be drawn, and is of no use here
                entry.remove(polygon)
        return detections_from_xml_obj(root, [], (1, 1))[0]  # the size is for masks alone


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_ANNOTATION + 1)
    if len(data) > MAX_ANNOTATION:
        raise RecordError(f"{path.name} has more than the {MAX_ANNOTATION} bytes allowed")
    return data


def _lines(data: bytes) -> list[str]:
    try:
        return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise RecordError(f"is no UTF-8 text: {error.reason}") from error


def _xml(data: bytes) -> Element:
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise RecordError(f"is no XML: {error}") from error


def _class_names(path: str) -> dict[int, str]:
    """The classes of a data.yaml: {number: name}, from a list or a mapping."""
    where = "source.options.names"
    loaded = read_yaml(existing_path(path, where, "file"), f"{where}: {path}")
    names = loaded.get("names") if isinstance(loaded, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(_is_class_number(key) for key in names):
        raise ConfigurationError(f"{where}: {path} has no list or numbered mapping 'names'")
    return {int(key): str(name) for key, name in names.items()}


def _is_class_number(key: Any) -> bool:
    return str(key).isdecimal() and len(str(key)) <= MAX_DIGITS
