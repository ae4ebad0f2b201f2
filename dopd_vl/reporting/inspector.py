"""The rollouts that a run kept, as the token inspector shows them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import iterate_rows
from dopd_vl.common.run_layout import IMAGES_FOLDER, ROLLOUTS_FILE
from dopd_vl.run_folder.kept_files import check_unchanged
from dopd_vl.run_folder.kept_images import read_image

_SEEN = ("images", "boxes", "views")


@dataclass
class Rollouts:
    """Kept rollouts of one run; what several of them share is here once."""

    records: list[dict[str, Any]] = field(default_factory=list)
    """rows of rollouts.jsonl; `views`: places in `views` below; `images`, `boxes`: of the example"""
    views: list[dict[str, Any]] = field(default_factory=list)
    """`sources`, `variant`, `prompt`, `images` (names, where a view shows other images than the example's)"""
    images: dict[str, bytes] = field(default_factory=dict)
    """name -> PNG file; an image that is missing from the folder is missing here"""
    missing: list[str] = field(default_factory=list)
    """files of the folder that are gone or damaged"""
    steps: int = 0
    """with rollouts in the folder; `records` may be of fewer"""


def read_rollouts(folder: Path, most_steps: int | None = None) -> Rollouts:
    """Rollouts of at most `most_steps` steps, spread evenly from the first to the last; None: of all.

    Rows of older runs, which hold tokens and their numbers alone, are read too.

    Raises:
        UserError: a row is no rollout, or not as the run wrote it.
    """
    path = folder / ROLLOUTS_FILE
    gone = check_unchanged(folder, [ROLLOUTS_FILE])
    starts: dict[int, list[tuple[int, int]]] = {}  # a run's file may be gigabytes: only what is chosen is held
    for number, (start, row) in enumerate(iterate_rows(path), 1):
        starts.setdefault(row["step"], []).append((start, number))
    result = Rollouts(steps=len(starts))
    places: dict[str, int] = {}
    shown: dict[tuple[int, str], dict[str, Any]] = {}
    chosen = spread(sorted(starts), most_steps)
    for row in _rows_at(path, sorted(start for step in chosen for start in starts[step])):
        # A row says what no earlier one of its example at its step has said.
        known = shown.setdefault((row["step"], str(row.get("id"))), {"images": [], "boxes": [], "views": {}})
        known["images"] = row.get("images", known["images"])
        known["boxes"] = row.get("boxes", known["boxes"])
        for view in row.get("views", []):
            place = places.setdefault(repr(view), len(places))
            if place == len(result.views):
                result.views.append(view)
            known["views"] |= dict.fromkeys(view["sources"], place)
        tokens = {name: value for name, value in row.items() if name not in _SEEN}
        views = list(dict.fromkeys(known["views"].values()))
        result.records.append({**tokens, "images": known["images"], "boxes": known["boxes"], "views": views})
    names = {name for row in result.records for name in row["images"]}
    names |= {name for view in result.views for name in view.get("images", [])}
    found = {name: read_image(name, folder / IMAGES_FOLDER) for name in sorted(names)}
    result.images = {name: data for name, data in found.items() if data is not None}
    result.missing = gone + [f"{IMAGES_FOLDER}/{name}" for name, data in found.items() if data is None]
    return result


def _rows_at(path: Path, starts: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The rows that start at these bytes, each with the number of its line."""
    if starts:
        with path.open("rb") as file:
            for start, number in starts:
                file.seek(start)
                row = json.loads(file.readline())
                problem = _problem(row)
                if problem:
                    raise UserError(f"{path}: line {number} is no rollout: {problem}")
                yield row


def spread(steps: Sequence[int], most: int | None) -> list[int]:
    """At most `most` of the steps, the first and the last among them.

    >>> spread([1, 2, 3, 4, 5, 6, 7, 8, 9], 3)
    [1, 5, 9]
    >>> spread([1, 2, 3], 1)
    [3]
    """
    if most is None or len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _problem(row: dict[str, Any]) -> str | None:
    """What keeps a row from being shown; None for nothing. Everything else in it is shown as text, whatever it is."""
    tokens = row.get("tokens")
    if not _is_list_of(tokens, str):
        return "tokens must be a list of texts"
    alternatives = row.get("alternatives", {})
    if not isinstance(alternatives, dict):
        return "alternatives must be an object"
    for source, places in alternatives.items():
        if not _is_list_of(places, list) or len(places) != len(row["tokens"]):
            return f"alternatives of {source} must be a list for each token"
        if any(not isinstance(pair, list) or len(pair) != 2 for place in places for pair in place):
            return f"alternatives of {source} must be pairs of a token and its probability"
    if not _is_list_of(row.get("images", []), str):
        return "images must be a list of names"
    boxes = row.get("boxes", [])
    if not _is_list_of(boxes, dict) or any(not _is_list_of(box.get("bbox"), (int, float), 4) for box in boxes):
        return "each of boxes must have a bbox of four numbers"
    for view in row.get("views", []):
        if not isinstance(view, dict) or not _is_list_of(view.get("sources"), str):
            return "each of views must have a list of sources"
        if not isinstance(view.get("prompt"), str) or not _is_list_of(view.get("images", []), str):
            return "each of views must have a prompt, and a list of images or none"
    return None


def _is_list_of(value: Any, kind: Any, length: int | None = None) -> bool:
    right_length = isinstance(value, list) and (length is None or len(value) == length)
    return right_length and all(isinstance(item, kind) for item in value)
