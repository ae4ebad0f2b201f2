"""Questions about the objects in the pictures of a table, as about those of COCO: detection sets of the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from dopd_vl.common.errors import RecordError
from privileged.audit.audit import Tally
from privileged.sources.questions import asked, read_questions, record_id
from privileged.sources.tables import Numbered
from privileged.sources.transforms import object_entries

OBJECTS = "privileged.boxes"


class Table(Numbered, Protocol):
    """Rows with our columns filled."""

    name: str
    image_root: Path | None

    def values(self, target: str) -> Iterator[Any]:
        """One of our columns for every row; a RecordError where it cannot be read."""
        ...


class ObjectTable:
    """A record for each question and row, or label of a row.

    Which labels each picture has is held in memory. Where the rows have `width` and `height`, the pictures must too.
    """

    def __init__(self, table: Table, questions: list[Any], class_names: list[str] | None):
        self._table, self._questions, self._names = table, read_questions(questions), class_names
        self.name, self.image_root = table.name, table.image_root
        self.found = Tally()
        # Of each row its labels and whether they are all that is there, or the reason why they cannot be read.
        found: list[tuple[list[str], bool] | str] = []
        for row, value in enumerate(table.values(OBJECTS)):
            try:
                if isinstance(value, RecordError):
                    raise value
                entries = object_entries(value, self._names)
            except RecordError as error:
                found.append(str(error))
                continue
            crowds = {entry["label"] for entry in entries if entry["crowd"]}
            labels = sorted({entry["label"] for entry in entries} - crowds)
            if crowds:
                self.found.note(f"row {row}: {', '.join(sorted(crowds))}", ["crowd_left_out"])
            if not labels:
                self.found.note(f"row {row}", ["image_without_objects"])
            found.append((labels, not crowds))
        kinds = Counter(label for entry in found if not isinstance(entry, str) for label in entry[0])
        # An item is (row, question, label or None), or (row, reason why its objects cannot be read).
        self._items: list[tuple[int, int, str | None] | tuple[int, str]] = []
        for row, entry in enumerate(found):
            if isinstance(entry, str):
                self._items.append((row, entry))
                continue
            labels, whole = entry
            self._items += [(row, *ask) for ask in asked(self._questions, labels, kinds, str(row), whole)]

    def fingerprint(self) -> str:
        return f"objects:{self._names}:{self._table.fingerprint()}"

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        item = self._items[index]
        if len(item) == 2:
            raise RecordError(f"{OBJECTS}: {item[1]}", f"{self.name}-row-{item[0]}")
        row, number, label = item
        raw = self._table[row]
        boxes = [
            {"label": entry["label"], "bbox": entry["bbox"]} for entry in object_entries(raw.get(OBJECTS), self._names)
        ]
        boxes = [box for box in boxes if box["label"] == label] or boxes
        if raw.get("width") is not None and raw.get("height") is not None:
            raw["image_sizes"] = [[raw["width"], raw["height"]]]
        own = raw.get("id")
        return {
            **raw,
            OBJECTS: None,
            "id": record_id(self.name if own is None else own, row if own is None else None, label, number),
            **self._questions[number].ask(boxes, label),
        }
