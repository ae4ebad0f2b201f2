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
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dopd_vl.common.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is read; phones' MPO files come under JPEG. Not here: what runs other programs (EPS), documents, rarities."""

KEPT_FORMATS = ("PNG", "JPEG", "MPO", "WEBP")
"""Files in these formats are stored byte for byte when they decode to plain colour or grey as they are."""


@dataclass(frozen=True)
class ImageLimits:
    """What is still an image to learn from.

    Args:
        max_pixels: Largest width times height. A file that would unpack to more is refused before it is unpacked.
        max_bytes: Largest file.
        max_aspect: Longest side over shortest. Vision processors refuse slivers (Qwen's limit is 200).
    """

    RENAMED: ClassVar[dict[str, str]] = dict.fromkeys(
        ("allow_urls", "allow_private_urls", "url_seconds"),
        "is gone: nothing is fetched; download the images into a folder, name it in the source's option 'images', and "
        "let the records give paths in there",
    )

    max_pixels: int = 50_000_000
    max_bytes: int = 64 * 1024 * 1024
    max_aspect: float = 200.0


@dataclass(frozen=True)
class StoredImage:
    """An image as the dataset keeps it: encoded bytes, and the upright RGB picture that they decode to."""

    data: bytes
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def folded(self) -> StoredImage:
        """The same with `image` still to be decoded, in the mode of the bytes: many can wait in little memory."""
        return StoredImage(self.data, Image.open(io.BytesIO(self.data), formats=FORMATS))


def load_image(value: Any, root: Path | None = None, limits: ImageLimits | None = None) -> StoredImage:
    """An image from a path under `root`, bytes, a {"bytes", "path"} dict (as Hugging Face stores them) or a PIL image.

    The result is upright (EXIF orientation applied) and RGB: alpha is laid on white, 16-bit grey is scaled to 8.
    """
    limits = limits or ImageLimits()
    if isinstance(value, Image.Image):
        check_size(value.size, limits)
        upright, _ = _upright_rgb(value)
        return StoredImage(png_file(upright), upright)
    data = _bytes_of(value, root, limits)
    if not data:
        raise ImageError("the image file is empty")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image file has {len(data)} bytes, more than the {limits.max_bytes} allowed")
    return _decode(data, limits)


def resolve_inside(path: str, root: Path) -> Path:
    """The file that `path` means, if it is a regular file inside `root`, links followed.

    >>> resolve_inside("../secret.png", Path("images"))
    Traceback (most recent call last):
    dopd_vl.common.errors.ImageError: image path '../secret.png' leaves the image folder
    """
    if "\0" in path or not path.strip():
        raise ImageError(f"{path!r} is no image path")
    _refuse_address(path)
    try:
        resolved = (root / path).resolve()
        inside = resolved.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a loop of links
        raise ImageError(f"image path {path!r} cannot be followed: {error}") from error
    if not inside:
        raise ImageError(f"image path {path!r} leaves the image folder")
    try:
        mode = resolved.stat().st_mode
    except OSError as error:
        raise ImageError(f"image {path!r} is not in the image folder ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise ImageError(f"image {path!r} is no file")
    return resolved


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
        raise ImageError(f"image {value!r} is a path, but no image folder is set: set the source's 'images' option")
    path = resolve_inside(value, root)
    try:
        with path.open("rb") as file:
            # One byte more than allowed tells a file that is too large without reading all of it.
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        raise ImageError(f"image {value!r} cannot be read ({error.strerror})") from error


def _decode(data: bytes, limits: ImageLimits) -> StoredImage:
    Image.init()  # all formats: Pillow knows only the commonest at first
    with _strict_pillow():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                check_size(opened.size, limits)
                # A phone's MPO holds a preview or a second eye beside the picture; the others hold a film or pages.
                frames = getattr(opened, "n_frames", 1)
                if frames > 1 and opened.format != "MPO":
                    raise ImageError(f"the image is a {opened.format} of {frames} frames; give one still image")
                opened.load()
                upright, changed = _upright_rgb(opened)
                kept = opened.format in KEPT_FORMATS and not changed
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise ImageError(f"the file is no image in a format that is read ({', '.join(FORMATS)})") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"the image would unpack to more than the {limits.max_pixels} pixels allowed") from error
        except Exception as error:
            # Pillow's decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error, ValueError.
            raise ImageError(f"the image is damaged ({type(error).__name__}: {error})") from error
    return StoredImage(data if kept else png_file(upright), upright)


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


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """The upright RGB picture without metadata, and whether it differs from what a plain decoder would show."""
    turned = image.getexif().get(0x0112, 1) not in (0, 1)
    if turned:
        image = ImageOps.exif_transpose(image)
    has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if image.mode in ("RGB", "L") and not has_alpha:
        rgb, changed = image.convert("RGB"), turned
    elif has_alpha:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb, changed = Image.alpha_composite(white, rgba).convert("RGB"), True
    elif image.mode.startswith("I"):
        rgb, changed = _eight_bit(image).convert("RGB"), True
    elif image.mode == "F":
        raise ImageError("the image holds floating-point values; give 8-bit or 16-bit pixels")
    else:
        rgb, changed = image.convert("RGB"), True
    clean = Image.new("RGB", rgb.size)
    clean.paste(rgb)
    return clean, changed


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8: the full range to the full range, 65535 to 255."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ImageError("the image holds integers outside 0-65535; give 8-bit or 16-bit pixels")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def png_file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
