"""The images that kept rollouts name: PNG files in `images/` of the run folder, each under the name of its content."""

import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from dopd_vl.common.files import write_atomically

LONGEST_SIDE = 448
"""Pixels: a larger image is kept at this size, to look at and not to learn from."""
_NAME = re.compile(r"[0-9a-f]{24}\.png")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST = 4 * LONGEST_SIDE**2
"""Bytes: no PNG of that many pixels has more."""


def save_image(image: Image.Image, folder: Path) -> str:
    """Keep an image as `folder/NAME` and return the name; the same image is kept once."""
    picture = image.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    name = _name_of(picture)
    if read_image(name, folder) is None:
        folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        write_atomically(folder / name, buffer.getvalue())
    return name


def read_image(name: str, folder: Path) -> bytes | None:
    """The PNG file of that name; None where it is missing, damaged, or none that `save_image` could have written."""
    if not _NAME.fullmatch(name):
        return None
    path = folder / name
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    data = path.read_bytes()
    if not data.startswith(_SIGNATURE):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            # By the header's word, before anything is decoded.
            whole = max(picture.size) <= LONGEST_SIDE and picture.mode == "RGB" and _name_of(picture) == name
    except (OSError, SyntaxError, ValueError):  # PIL's words for a damaged file
        return None
    return data if whole else None


def _name_of(picture: Image.Image) -> str:
    """By its pixels."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()[:24] + ".png"
