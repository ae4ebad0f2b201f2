"""The handwritten digits that nano scenes are composed from (UCI optical recognition, CC BY 4.0; data/nano/digits)."""

import json
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from dopd_vl.common.resources import nano_data_folder

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


class Digits(NamedTuple):
    """images [n, 8, 8] uint8, ink 0 (none) to 240 (full); by_label[d] lists the rows that show digit d."""

    images: np.ndarray
    labels: np.ndarray
    by_label: tuple[tuple[int, ...], ...]


@cache
def load_digits(split: Split) -> Digits:
    """The train (1,300) or the held-out (497) digits: no digit is in both."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    folder = nano_data_folder() / "digits"
    index = json.loads((folder / "digits.json").read_text())
    with Image.open(folder / "digits.png") as image:
        sheet = np.asarray(image.convert("L"))
    cell, columns = index["cell"], index["columns"]
    cells = sheet.reshape(sheet.shape[0] // cell, cell, columns, cell).transpose(0, 2, 1, 3).reshape(-1, cell, cell)
    chosen = [row for row, letter in enumerate(index["split"]) if letter == split[0]]
    labels = np.array([int(index["labels"][row]) for row in chosen])
    by_label = tuple(tuple(np.flatnonzero(labels == label).tolist()) for label in range(10))
    return Digits(np.ascontiguousarray(cells[chosen]), labels, by_label)
