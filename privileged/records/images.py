"""Safe image loading. Nothing about an image in a record is trusted: its path, its size, its format, its bytes.

Every refusal is an `ImageError` whose message is the reason.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dopd_vl.common.errors import ImageError
from privileged.records.fields import Finding

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is read; phones' MPO files come under JPEG. Not here: what runs other programs (EPS), documents, rarities."""

KEPT_FORMATS = ("PNG", "JPEG", "MPO", "WEBP")
"""Files in these formats are stored byte for byte when they decode to plain colour or grey as they are."""

ORIENTATION = 0x0112
"""The EXIF tag of how a picture must be turned: 1 as it is, 5 to 8 with width and height exchanged."""

FAINT = 32
"""Levels, of 255, by which a pixel must differ from white to be seen on it."""

SHOWN = 60
"""Characters of a path that a reason shows."""

IMAGES_OF_RECORD = 4
"""A record's images may have as many pixels and bytes together as so many of the largest that `ImageLimits` allows."""

BAND = 256
"""Rows of a picture that are worked on at a time."""


@dataclass(frozen=True)
class ImageLimits:
    """What is still an image to learn from.

    Args:
        max_pixels: The largest width times height. A file that would unpack to more is refused before it is unpacked.
        max_bytes: The largest file, in bytes.
        max_aspect: The most that the longest side may be over the shortest. Vision processors refuse slivers (Qwen's
            limit is 200).
    """

    RENAMED: ClassVar[dict[str, str]] = dict.fromkeys(
        ("allow_urls", "allow_private_urls", "url_seconds"),
        "is gone: nothing is fetched; download the images into a folder, name it in the source's option 'images', and "
        "let the records give paths in there",
    )

    max_pixels: int = 50_000_000
    max_bytes: int = 64 * 1024 * 1024
    max_aspect: float = 200.0

    def room(self) -> Room:
        """For the images of one record."""
        return Room(IMAGES_OF_RECORD * self.max_pixels, IMAGES_OF_RECORD * self.max_bytes)


@dataclass
class Room:
    """The pixels and bytes that the images of a record may still have together: all of them are held at once."""

    pixels: int
    file_bytes: int

    def take(self, size: tuple[int, int]) -> None:
        """Raise ImageError where there is no room for a picture of this size, which is not yet unpacked."""
        self.pixels -= size[0] * size[1]
        if self.pixels < 0:
            raise ImageError("with it, the record's images have too many pixels to be held together")

    def take_file(self, data: bytes) -> None:
        self.file_bytes -= len(data)
        if self.file_bytes < 0:
            raise ImageError("with it, the record's image files have too many bytes to be held together")


@dataclass(frozen=True)
class StoredImage:
    """An image as the dataset keeps it: encoded bytes, and the upright RGB picture that they decode to.

    `findings` says what was done to what came in; `orientation` is the EXIF tag's value that it was turned by.
    """

    data: bytes
    image: Image.Image
    findings: tuple[Finding, ...] = ()
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def folded(self) -> StoredImage:
        """The same with `image` still to be decoded, in the mode of the bytes: many can wait in little memory."""
        return StoredImage(self.data, Image.open(io.BytesIO(self.data), formats=FORMATS))


def load_image(
    value: Any, root: Path | None = None, limits: ImageLimits | None = None, room: Room | None = None
) -> StoredImage:
    """An image from a path under `root`, bytes, a {"bytes", "path"} dict (as Hugging Face stores them) or a PIL image.

    The result is upright (EXIF orientation applied) and RGB: alpha is laid on white, or on black where nothing would
    show on white; 16-bit grey is scaled to 8, by the bits that its values fill.

    Args:
        room: What a record's images before it have left.
    """
    limits = limits or ImageLimits()
    room = room or limits.room()
    if isinstance(value, Image.Image):
        check_size(value.size, limits)
        room.take(value.size)
        upright, findings, _ = _upright_rgb(value)
        return StoredImage(png_file(upright), upright, findings, _orientation(value))
    data = _bytes_of(value, root, limits)
    if not data:
        raise ImageError("the image file is empty")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image file has {len(data)} bytes, more than the {limits.max_bytes} allowed")
    room.take_file(data)
    return _decode(data, limits, room)


def resolve_inside(path: str, root: Path) -> Path:
    """The file that `path` means, if it is a regular file inside `root`, links followed.

    >>> resolve_inside("../secret.png", Path("images"))
    Traceback (most recent call last):
    dopd_vl.common.errors.ImageError: image path '../secret.png' leaves the image folder
    """
    if "\0" in path or not path.strip():
        raise ImageError(f"{shown(path)} is no image path")
    _refuse_address(path)
    try:
        resolved = (root / path).resolve()
        inside = resolved.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a loop of links
        reason = getattr(error, "strerror", None) or type(error).__name__  # the message would repeat the path
        raise ImageError(f"image path {shown(path)} cannot be followed ({reason}){_if_base64(path)}") from error
    if not inside:
        raise ImageError(f"image path {shown(path)} leaves the image folder{_if_base64(path)}")
    try:
        mode = resolved.stat().st_mode
    except OSError as error:
        raise ImageError(
            f"image {shown(path)} is not in the image folder ({error.strerror}){_if_base64(path)}"
        ) from error
    if not stat.S_ISREG(mode):
        raise ImageError(f"image {shown(path)} is no file")
    return resolved


def shown(path: str) -> str:
    """A path as a reason shows it, which may be a whole picture as text."""
    return repr(path if len(path) <= SHOWN else f"{path[:SHOWN]}...")


def _if_base64(path: str) -> str:
    if path.startswith("data:") or len(path) > 255:
        return "; a picture as base64 text is not read: give its bytes, or a file"
    return ""


def _refuse_address(path: str) -> None:
    scheme, mark, rest = path.partition("://")
    if mark:
        host, slash, file = rest.partition("?")[0].partition("/")
        shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{file}"[:200]  # no password, no token
        raise ImageError(
            f"image {shown!r} is an address, and nothing is fetched: download it into the image folder (the source's "
            "option 'images') and give its path in there"
        )


def check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"the image is {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise ImageError(f"the image is {width} x {height}, more than the {limits.max_pixels} pixels allowed")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(f"the image is {width} x {height}, a sliver (aspect above {limits.max_aspect:g})")


def _bytes_of(value: Any, root: Path | None, limits: ImageLimits) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes | bytearray):
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ImageError(f"an image must be a path, bytes or a PIL image, not {type(value).__name__}")
    _refuse_address(value)
    if root is None:
        raise ImageError(
            f"image {shown(value)} is a path, but no image folder is set: set the source's 'images' option"
            f"{_if_base64(value)}"
        )
    path = resolve_inside(value, root)
    try:
        with path.open("rb") as file:
            # One byte more than allowed tells a file that is too large without reading all of it.
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        raise ImageError(f"image {shown(value)} cannot be read ({error.strerror})") from error


def _decode(data: bytes, limits: ImageLimits, room: Room) -> StoredImage:
    Image.init()  # all formats: Pillow knows only the commonest at first
    with _strict_pillow():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                check_size(opened.size, limits)
                room.take(opened.size)
                # A phone's MPO holds a preview or a second eye beside the picture; the others hold a film or pages,
                # which are not counted: Pillow takes the square of their number in time.
                if getattr(opened, "is_animated", False) and opened.format != "MPO":
                    raise ImageError(f"the image is a {opened.format} of several frames; give one still image")
                deep = any(";16" in str(tile[3]) for tile in opened.tile)
                opened.load()
                upright, findings, changed = _upright_rgb(opened, deep)
                kept = opened.format in KEPT_FORMATS and not changed
                orientation = _orientation(opened)
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"the file is no image in a format that is read ({', '.join(FORMATS)})") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"the image would unpack to more than the {limits.max_pixels} pixels allowed") from error
        except Exception as error:
            # Pillow's decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error, ValueError.
            raise ImageError(f"the image is damaged ({type(error).__name__}: {error})") from error
    return StoredImage(data if kept else png_file(upright), upright, findings, orientation)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Truncated files are errors whatever another library has set; Pillow's warnings about damage are not shown."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _orientation(image: Image.Image) -> int:
    """From 1 to 8; what is no orientation is none."""
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(2, 9) else 1


def _upright_rgb(image: Image.Image, deep: bool = False) -> tuple[Image.Image, tuple[Finding, ...], bool]:
    """The upright RGB picture without metadata, what was done to it, and whether a plain decoder would show another.

    Args:
        deep: The file has 16 bits a channel. Of colour Pillow keeps the upper 8.
    """
    findings = []
    orientation = _orientation(image)
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
        findings.append(Finding("image_turned", f"turned by its EXIF orientation {orientation}"))
    if image.mode == "F":
        raise ImageError("the image holds floating-point values; give 8-bit or 16-bit pixels")
    has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if image.mode.startswith("I"):
        if has_alpha:
            raise ImageError("the image has 16-bit grey and a transparent level; give it 8 bits, or no transparency")
        image, bits = _eight_bit(image)
        findings.append(Finding("image_scaled", f"16-bit grey, whose values fill {bits} bits, scaled to 8"))
    elif deep:
        brightest = max(high for _, high in _extrema(image.convert("RGB")))
        if brightest < 64:
            raise ImageError(
                f"the image has 16-bit colour of values up to {brightest * 257} of 65535, and would be nearly black; "
                "give it 8 bits"
            )
        findings.append(Finding("image_scaled", "16-bit colour brought to 8"))
    if has_alpha:
        rgba = image if image.mode == "RGBA" and "transparency" not in image.info else image.convert("RGBA")
        rgb, ground = _on_a_ground(rgba)
        if ground:
            findings.append(Finding("image_transparent", f"transparent pixels laid on {ground}"))
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    plain = image.mode in ("RGB", "L") and not has_alpha
    return rgb, tuple(findings), bool(findings) or not plain


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    return cast(list[tuple[int, int]], image.getextrema())


def _on_a_ground(rgba: Image.Image) -> tuple[Image.Image, str]:
    """The picture on white, or on black where nothing of it would show on white; the ground's name, if it matters."""
    lowest, highest = _extrema(rgba)[3]
    if highest == 0:
        raise ImageError("the image is wholly transparent: there is nothing to see")
    white = _laid_on((255, 255, 255, 255), rgba)
    if lowest == 255:
        return white, ""
    if min(low for low, _ in _extrema(white)) > 255 - FAINT:
        del white
        return _laid_on((0, 0, 0, 255), rgba), "black"
    return white, "white"


def _laid_on(ground: tuple[int, int, int, int], rgba: Image.Image) -> Image.Image:
    laid = Image.new("RGB", rgba.size)
    for top, band in _bands(rgba):
        laid.paste(Image.alpha_composite(Image.new("RGBA", band.size, ground), band).convert("RGB"), (0, top))
    return laid


def _eight_bit(image: Image.Image) -> tuple[Image.Image, int]:
    """16-bit grey to 8 and the bits that its values fill: 8, 10, 12, 14 or 16, whose full range becomes 0 to 255.

    A camera's 12 bits often come in files of 16: by the range of those the picture would be nearly black.
    """
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError("the image holds integers outside 0-65535; give 8-bit or 16-bit pixels")
    bits = max(8, (int(values.max()).bit_length() + 1) // 2 * 2)
    level = np.round(np.arange(2**bits) * 255 / (2**bits - 1)).astype(np.uint8)
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), BAND):
        scaled[top : top + BAND] = level[values[top : top + BAND]]
    return Image.fromarray(scaled), bits


def pixel_bands(image: Image.Image) -> Iterator[bytes]:
    """What `image.tobytes()` gives, piece by piece: whole it would be held twice more."""
    return (band.tobytes() for _, band in _bands(image))


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    width, height = image.size
    for top in range(0, height, BAND):
        yield top, image.crop((0, top, width, min(top + BAND, height)))


def png_file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
