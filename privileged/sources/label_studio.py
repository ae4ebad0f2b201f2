"""Pictures with boxes from an export of Label Studio (JSON), as the rows of a table of objects.

A task has its picture's address under `data`, and one annotation for each person who worked on it. Positions are per
cent of the picture that the annotator saw, and a turned box is turned about its own upper left corner.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from dopd_vl.common.configuration import check_choice
from dopd_vl.common.errors import RecordError
from privileged.audit.audit import Tally
from privileged.records.fields import is_visible, item_list, number_list
from privileged.sources.tables import Numbered

SEVERAL = ("refuse", "first", "last")
LABELLED = ("rectanglelabels", "labels")
NO_REGIONS = ("choices", "textarea", "number", "rating", "datetime", "taxonomy", "pairwise", "ranker", "relation")
"""Types of results that mark nothing in the picture."""

MAX_PARTS = 32
"""Folders in an address."""

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
"""What Label Studio calls a file that was uploaded: eight hexadecimal digits, and the name that it had."""


@dataclass
class LabelStudioOptions:
    """An export of Label Studio in its form "JSON", and the folder of its pictures.

    Args:
        export: The JSON file.
        images: The folder of the pictures. Nothing is fetched: of an address (an upload, `local-files/?d=...`, http,
            s3) the longest end that is a path in the folder is taken, or an upload's name without its prefix.
        questions: A list of settings of `questions.Question`.
        image: The key of a task's `data` that has the picture's address.
        several: Of a task that several annotated, and of which none is marked as ground truth: "refuse" sets it aside,
            "first" and "last" take that annotation, by its id.
    """

    export: str
    images: str
    questions: list[Any]
    image: str = "image"
    several: str = "refuse"


class LabelStudioTable:
    """The tasks of an export, with `images`, `width`, `height` and `privileged.boxes` in pixels."""

    def __init__(self, tasks: Numbered, name: str, images: Path, options: LabelStudioOptions):
        check_choice(options.several, SEVERAL, "source.options.several")
        self._tasks, self._options = tasks, options
        self.name = name
        self.image_root: Path | None = images
        self._folder = images
        self.found = Tally()
        self._addresses: dict[str, set[str]] = defaultdict(set)
        for index in range(len(tasks)):
            try:
                task = tasks[index]
                _, turned = self._boxes(task)
                address = self._address(task)
                self._addresses[self._file(address)].add(address)
            except RecordError:
                continue  # told of where the task is read
            if turned:
                self.found.note(f"task {task.get('id')}", ["box_turned"])

    def fingerprint(self) -> str:
        return f"label-studio:{self._options.image}:{self._options.several}:{self._tasks.fingerprint()}"

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        task = self._tasks[index]
        (boxes, size), address = self._boxes(task)[0], self._address(task)
        file = self._file(address)
        if len(self._addresses[file]) > 1:
            others = ", ".join(sorted(self._addresses[file] - {address}))
            raise RecordError(f"the addresses {address!r:.200} and {others!r:.200} lead to one file, {file}")
        width, height = size or (None, None)
        own = task.get("id")
        return {
            "id": own if isinstance(own, int | str) else index,
            "images": [file],
            "width": width,
            "height": height,
            "privileged.boxes": boxes,
            "box_format": "xyxy",
        }

    def values(self, target: str) -> Iterator[Any]:
        """One of our columns for every task; a RecordError where it cannot be read."""
        for index in range(len(self)):
            try:
                yield self[index].get(target)
            except RecordError as error:
                yield error

    def _boxes(self, task: Mapping[str, Any]) -> tuple[tuple[list[dict[str, Any]], tuple[float, ...] | None], bool]:
        """The boxes of a task and the size of the picture that they are in, and whether any of them was turned."""
        results = self._results(task)
        sizes: set[tuple[float, ...]] = set()
        labelled: dict[Any, tuple[list[float], dict[str, None]]] = {}
        bare: dict[Any, str] = {}
        turned = False
        for number, result in enumerate(results):
            where = f"result[{number}]"
            if not isinstance(result, Mapping):
                raise RecordError(f"{where} must be a mapping, not {type(result).__name__}")
            kind, value = result.get("type"), result.get("value")
            if kind in NO_REGIONS or (kind == "labels" and isinstance(value, Mapping) and "start" in value):
                continue
            if kind not in (*LABELLED, "rectangle") or not isinstance(value, Mapping) or "width" not in value:
                raise RecordError(f"{where} is of the type {reprlib.repr(kind)}, and no box")
            region = (type(result.get("id")).__name__, str(result["id"])) if result.get("id") else number
            if kind == "rectangle":  # its label is in a result of its own, of the same id
                bare[region] = where
                continue
            corners, size, is_turned = _corners(result, value, where)
            sizes.add(size)
            turned = turned or is_turned
            labels = labelled.setdefault(region, (corners, {}))[1]
            labels |= dict.fromkeys(_labels(value.get(kind), where))
        for region, where in bare.items():
            if region not in labelled:
                raise RecordError(f"{where} is a box without a label")
        if len(sizes) > 1:
            raise RecordError("the boxes are of pictures of several sizes")
        boxes = [{"label": label, "bbox": corners} for corners, labels in labelled.values() for label in labels]
        return (boxes, next(iter(sizes), None)), turned

    def _results(self, task: Mapping[str, Any]) -> list[Any]:
        given = task.get("annotations")
        if not isinstance(given, list) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("result"), list) for entry in given
        ):
            raise RecordError(
                "the task has no 'annotations' with a list 'result' in each; export as JSON, not JSON-MIN"
            )
        done = [entry for entry in given if not entry.get("was_cancelled")]
        chosen = [entry for entry in done if entry.get("ground_truth")] or done
        if len(chosen) > 1:
            if self._options.several == "refuse":
                raise RecordError(
                    f"{len(chosen)} annotations of a task, and not one alone is the ground truth; see option several"
                )
            if not all(type(entry.get("id")) is int for entry in chosen):
                raise RecordError("several annotations of one task have no ids that say which came first")
            chosen.sort(key=lambda entry: int(entry["id"]), reverse=self._options.several == "last")
        return list(item_list(chosen[0]["result"], "result")) if chosen else []

    def _address(self, task: Mapping[str, Any]) -> str:
        data = task.get("data")
        address = data.get(self._options.image) if isinstance(data, Mapping) else None
        if not isinstance(address, str) or not address.strip():
            key = f"data.{self._options.image}"
            raise RecordError(f"{key} must be the address of one picture, not {reprlib.repr(address)}")
        return address.strip()

    def _file(self, address: str) -> str:
        """The path below the folder of pictures that an address leads to."""
        if address.startswith("data:"):
            raise RecordError("the picture is written into the export; save it as a file, and name that")
        try:
            parsed = urlsplit(address)
            path = unquote(parsed.path)
            if "local-files" in path:
                path = parse_qs(parsed.query).get("d", [""])[0]
        except ValueError:  # brackets of an address of IPv6 that do not fit
            path = address
        for text in (address, path):
            parts = [part for part in PurePosixPath(text.replace("\\", "/")).parts if part != "/"][-MAX_PARTS:]
            for start in range(len(parts)):
                if ".." not in parts[start:] and self._is_file("/".join(parts[start:])):
                    return "/".join(parts[start:])
        name = PurePosixPath(path).name
        uploaded = _UPLOADED.fullmatch(name)
        if uploaded is not None and self._is_file(uploaded[1]):
            return uploaded[1]
        raise RecordError(f"the folder {self._folder} has no picture {name!r:.100}, of {address!r:.200}")

    def _is_file(self, name: str) -> bool:
        try:
            return (self._folder / name).is_file()
        except (OSError, ValueError):  # a name that is too long, or with a null in it
            return False


def _corners(
    result: Mapping[str, Any], value: Mapping[str, Any], where: str
) -> tuple[list[float], tuple[float, ...], bool]:
    """The upright box around one that may be turned, as x1, y1, x2, y2 in pixels; the picture's size; whether it is."""
    size = tuple(
        number_list([result.get("original_width"), result.get("original_height")], 2, f"{where}.original_width")
    )
    share = [value.get(name) for name in ("x", "y", "width", "height")]
    x, y, width, height = (
        number / 100 * size[place % 2] for place, number in enumerate(number_list(share, 4, f"{where}.value"))
    )
    angle, view = (
        number_list([0 if given is None else given], 1, f"{where}.rotation")[0]
        for given in (value.get("rotation"), result.get("image_rotation"))
    )
    if min(size) < 1 or width < 0 or height < 0:
        raise RecordError(f"{where} has a size that is not positive")
    if view % 360:
        raise RecordError(f"{where} was drawn while the picture was turned by {view:g} degrees")
    if not angle % 360:
        return [x, y, x + width, y + height], size, False
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = (width * cosine, width * sine), (-height * sine, height * cosine)
    xs, ys = ([0.0, a, b, a + b] for a, b in zip(across, down, strict=True))
    return [x + min(xs), y + min(ys), x + max(xs), y + max(ys)], size, True


def _labels(given: Any, where: str) -> list[str]:
    if (
        not isinstance(given, list)
        or not given
        or not all(isinstance(name, str) and is_visible(name) for name in given)
    ):
        raise RecordError(f"{where} has no list of labels, but {reprlib.repr(given)}")
    return given
