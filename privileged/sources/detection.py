"""YOLO and Pascal VOC folders as questions, one image at a time.

The readers of single files are supervision's (`yolo_annotations_to_detections`, `detections_from_xml_obj`), not its
loaders (`sv.DetectionDataset.from_yolo`, `from_pascal_voc`): those hold the boxes of all images in memory, and one bad
file ends them. Here only which labels each image has is held, and a bad file is one bad record.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import yaml

from dopd_vl.common.configuration import existing_path, settings_of
from dopd_vl.common.errors import ConfigurationError, RecordError, one_line
from dopd_vl.common.quiet import import_supervision
from privileged.audit.audit import Tally
from privileged.records.fields import is_visible
from privileged.sources.plain_yaml import PlainLoader
from privileged.sources.questions import asked, read_questions, record_id

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""Of the formats that `images.FORMATS` names."""

MAX_ANNOTATION = 4 * 1024 * 1024
"""Bytes of one annotation file."""
MAX_DIGITS = 9
"""Digits of the number of a class."""

SLACK = 0.01
"""Share of the image by which a position may leave it: tools round, and the box is then clipped."""


@dataclass
class YoloOptions:
    """A folder of images, a folder of YOLO text files of the same names, and the names of the classes.

    Args:
        images: The folder of images, without sub-folders.
        labels: The folder of annotations: `street.txt` belongs to `street.jpg`. A line is a class number and a box
            (centre and size, as shares of the image) or a polygon, whose bounding box is taken. Keypoints may follow
            the box where `names` gives their `kpt_shape`.
        names: The `data.yaml` with the list or mapping `names`, and `kpt_shape`, [count, 2 or 3], of sets with poses.
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
    """A record for each question and image (or label of an image). What is left out is counted in `found`."""

    kind = ""
    suffix = ""
    box_format = "xyxy"

    def __init__(self, images: str, annotations: str, annotations_key: str, questions: list[Any]):
        self._questions = read_questions(questions)
        self.image_root: Path | None = existing_path(images, "source.options.images", "folder")
        self._annotations = existing_path(annotations, f"source.options.{annotations_key}", "folder")
        self.name = self.image_root.resolve().name
        self.found = Tally()
        folders = self.image_root.resolve(), self._annotations.resolve()
        self._images = self._files(folders[0], IMAGE_SUFFIXES, folders[1], [self.suffix])
        files = self._files(folders[1], [self.suffix], folders[0], IMAGE_SUFFIXES)
        pictures, self._files_of = _by_stem(self._images), _by_stem(files)
        for name in (name for stem, names in self._files_of.items() if stem not in pictures for name in names):
            self.found.note(name, ["annotation_without_image"])
        digest = hashlib.sha256(self._identity().encode())
        # An item is (image, question, label or None), or (image, reason why its annotations cannot be read).
        self._items: list[tuple[int, int, str | None] | tuple[int, str]] = []
        found: list[set[str] | str] = []  # of each image its labels, or the reason why they cannot be read
        for name in self._images:
            stem, labels = Path(name).stem, set()
            if stem in self._files_of:
                size = (self.image_root / name).stat().st_size
                try:
                    data = _read(self._annotation_path(name))
                    digest.update(os.fsencode(f"{name}:{size}:") + hashlib.sha256(data).digest())
                    if len(namesakes := [*pictures[stem], *self._files_of[stem]]) > 2:
                        raise RecordError(f"{', '.join(namesakes)} have one name: which belong together is not said")
                    labels = set(self._labels(data))
                except RecordError as error:
                    digest.update(os.fsencode(f"{name}:{size}:{error}"))
                    found.append(str(error))
                    continue
            if not labels:
                self.found.note(name, ["image_without_objects"])
            found.append(labels)
        kinds = Counter(label for labels in found if isinstance(labels, set) for label in sorted(labels))
        for number, (name, entry) in enumerate(zip(self._images, found, strict=True)):
            if isinstance(entry, str):
                self._items.append((number, entry))
            else:
                self._items += [(number, *ask) for ask in asked(self._questions, sorted(entry), kinds, name)]
        self._digest = digest.hexdigest()

    def _files(self, folder: Path, suffixes: Iterable[str], other: Path, others: Iterable[str]) -> list[str]:
        """The names of the files in a folder that are read, in order; what else lies there is counted.

        Args:
            other: The folder of the other kind of files, which may be this one or lie in it, with their suffixes.
        """
        names = []
        for path in sorted(path for path in folder.rglob("[!.]*") if path.is_file()):
            suffix = path.suffix.lower()
            if path.parent == folder and suffix in suffixes:
                names.append(path.name)
            elif not (path.is_relative_to(other) and (other != folder or (path.parent == other and suffix in others))):
                self.found.note(str(path.relative_to(folder)), ["file_skipped"])
        return names

    def _annotation_path(self, image: str) -> Path:
        return self._annotations / self._files_of[Path(image).stem][0]

    def _identity(self) -> str:
        """What besides the files decides the records."""
        return self.kind

    def _labels(self, data: bytes) -> Iterator[str]:
        raise NotImplementedError

    def _detections(self, data: bytes) -> Any:
        """supervision's Detections, as many as labels; a ValueError for what it cannot read."""
        raise NotImplementedError

    def _size(self, data: bytes) -> list[Any] | None:
        """The width and height that the file says its image has."""
        return None

    def _boxes(self, data: bytes) -> list[dict[str, Any]]:
        labels = list(self._labels(data))
        import_supervision()
        try:
            found = self._detections(data)
        except ValueError as error:
            raise RecordError(one_line(error)) from error
        return [{"label": label, "bbox": box} for label, box in zip(labels, found.xyxy.tolist(), strict=True)]

    def fingerprint(self) -> str:
        return f"{self.kind}:{self._digest}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        item = self._items[index]
        name = self._images[item[0]]
        path = self._annotation_path(name)
        try:
            if len(item) == 2:
                raise RecordError(item[1])
            data = _read(path)
            boxes, size = self._boxes(data), self._size(data)
        except RecordError as error:
            raise RecordError(f"{path.name} of {name}: {error}", name) from error
        _, number, label = item
        boxes = [box for box in boxes if box["label"] == label] or boxes
        return {
            "id": record_id(self.name, Path(name).stem, label, number),
            "images": [name],
            "image_sizes": None if size is None else [size],
            "box_format": self.box_format,
            **self._questions[number].ask(boxes, label),
        }


class YoloSource(_ObjectFolders):
    """YOLO text files."""

    kind, suffix, box_format = "yolo", ".txt", "xyxy_1"

    def __init__(self, options: Mapping[str, Any]):
        settings = settings_of(YoloOptions, options, "source.options")
        self._names, self._keypoints = _class_names(settings.names)
        super().__init__(settings.images, settings.labels, "labels", settings.questions)
        for name, count in Counter(self._names.values()).items():
            if count > 1:
                self.found.note(name, ["categories_merged"])

    def _identity(self) -> str:
        return f"{self.kind}:{self._names}:{self._keypoints}"

    def _labels(self, data: bytes) -> Iterator[str]:
        for line in _lines(data):
            yield self._names[self._class(line.split()[0])]

    def _class(self, text: str) -> int:
        """The number of a class, which tables write as 3.0."""
        number = re.fullmatch(rf"(\d{{1,{MAX_DIGITS}}})(?:\.0{{0,30}})?", text, re.ASCII)
        if number is None or int(number[1]) not in self._names:
            raise RecordError(f"class {text[:20]!r} is not among the {len(self._names)} names")
        return int(number[1])

    def _detections(self, data: bytes) -> Any:
        from supervision.dataset.formats.yolo import yolo_annotations_to_detections

        return yolo_annotations_to_detections([self._row(line) for line in _lines(data)], (1, 1), with_masks=False)

    def _row(self, line: str) -> str:
        """A line as supervision reads it: without keypoints, the class a whole number, every position in the image."""
        first, *values = line.split()
        if self._keypoints and len(values) == 4 + self._keypoints:
            values = values[:4]
        elif self._keypoints and len(values) > 4:
            raise RecordError(f"a line has {len(values)} values, but kpt_shape makes it {4 + self._keypoints}")
        elif len(values) > 5 and len(values) % 2:
            raise RecordError(f"a line has {len(values)} values: no box and no polygon (keypoints need kpt_shape)")
        positions = values if len(values) > 5 else values[:4]
        if not all(-SLACK <= float(value) <= 1 + SLACK for value in positions):
            raise RecordError(f"a line has the position {line[:80]!r}, which is no share of the image")
        return " ".join([str(self._class(first)), *values])


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

    def _size(self, data: bytes) -> list[Any] | None:
        size = _xml(data).find("size")
        if size is None:
            return None
        given = [(size.findtext(side) or "").strip() for side in ("width", "height")]
        try:
            return [float(value) for value in given]
        except ValueError:
            return given  # which `parse_record` refuses

    def _detections(self, data: bytes) -> Any:
        from supervision.dataset.formats.pascal_voc import detections_from_xml_obj

        root = _xml(data)
        for entry in root.findall("object"):
            for polygon in entry.findall("polygon"):  # its mask would be drawn, and is of no use here
                entry.remove(polygon)
        return detections_from_xml_obj(root, [], (1, 1))[0]  # the size is for masks alone


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of files under what stands before their suffixes."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(Path(name).stem, []).append(name)
    return found


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


def _class_names(path: str) -> tuple[dict[int, str], int]:
    """The classes of a data.yaml, {number: name}, from a list or a mapping, and the values of the keypoints in a line.

    Names are taken as they are written: YAML itself makes false of `no`, 7 of `007` and nothing of `null`.
    """
    where = f"source.options.names: {path}"
    file = existing_path(path, "source.options.names", "file")
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where} is no YAML ({one_line(error)})") from error
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    keys = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    if len(keys) < len(pairs):
        raise ConfigurationError(f"{where}: a key stands twice, or is no text")
    given = keys.get("names")
    entries: list[tuple[str, Any]] = []
    if isinstance(given, yaml.SequenceNode):
        entries = [(str(number), node) for number, node in enumerate(given.value)]
    elif isinstance(given, yaml.MappingNode):
        entries = [(key.value, node) for key, node in given.value if isinstance(key, yaml.ScalarNode)]
    names: dict[int, str] = {}
    for key, node in entries:
        if not key.isdecimal() or len(key) > MAX_DIGITS:
            raise ConfigurationError(f"{where}: names has the key {key[:20]!r}, which is no number of a class")
        if int(key) in names:
            raise ConfigurationError(f"{where}: names has the class {key} twice")
        name = " ".join(node.value.split()) if isinstance(node, yaml.ScalarNode) else ""
        if not is_visible(name):
            raise ConfigurationError(f"{where}: class {key} of names has no name")
        names[int(key)] = name
    if not names:
        raise ConfigurationError(f"{where} has no list or numbered mapping 'names'")
    return names, _keypoint_values(keys.get("kpt_shape"), where)


def _keypoint_values(node: yaml.Node | None, where: str) -> int:
    """How many numbers follow the box in a line, by `kpt_shape: [17, 3]`."""
    if node is None:
        return 0
    entries = node.value if isinstance(node, yaml.SequenceNode) else []
    shape = [entry.value for entry in entries if isinstance(entry, yaml.ScalarNode)]
    if (
        len(entries) != len(shape)
        or len(shape) != 2
        or not re.fullmatch(r"\d{1,4}", shape[0])
        or shape[1] not in ("2", "3")
    ):
        raise ConfigurationError(f"{where}: kpt_shape must be the count of keypoints and 2 or 3, such as [17, 3]")
    return int(shape[0]) * int(shape[1])
