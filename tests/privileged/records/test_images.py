"""Images that a record brings: only sound ones come through, upright and in RGB."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageFile
from privileged_samples import noise

from dopd_vl.common.errors import ImageError
from privileged.records.images import ImageLimits, load_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    noise().save(root / "good.png")
    noise().save(tmp_path / "secret.png")
    (root / "inner").symlink_to("good.png")
    (root / "outer.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    (root / "empty.png").write_bytes(b"")
    os.mkfifo(root / "fifo.png")
    return root


def test_a_path_inside_the_folder_opens(folder):
    for path in ("good.png", "./good.png", "inner", str(folder / "good.png")):
        assert load_image(path, folder).size == (48, 32)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "leaves the image folder"),
        ("x/../../secret.png", "leaves the image folder"),
        ("outer.png", "leaves the image folder"),
        ("up/secret.png", "leaves the image folder"),
        ("/etc/hostname", "leaves the image folder"),
        ("missing.png", "not in the image folder"),
        ("loop", "image"),
        (".", "is no file"),
        ("fifo.png", "is no file"),
        ("empty.png", "is empty"),
        ("", "no image path"),
        ("a\0b", "no image path"),
        ("x" * 5000, "image"),
        ("https://example.org/a.png", "is an address"),
        ("file:///etc/hostname", "is an address"),
    ],
)
def test_any_other_path_is_refused(folder, path, reason):
    with pytest.raises(ImageError, match=reason):
        load_image(path, folder)
    with pytest.raises(
        ImageError, match=r"no image folder is set|download it into the image folder" if path else "image"
    ):
        load_image(path)


@pytest.mark.parametrize("value", [None, 7, 3.5, [1], {}, {"path": None, "bytes": None}, object(), b"", {"bytes": b""}])
def test_what_is_no_image_is_refused(value, tmp_path):
    with pytest.raises(ImageError):
        load_image(value, tmp_path)


def test_damaged_files_are_refused_with_a_reason():
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        data = encoded(noise(64, 64), kind)
        with pytest.raises(ImageError):
            load_image(data[: len(data) // 2])
    for data in (
        b"not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
    ):
        with pytest.raises(ImageError):
            load_image(data)


def test_truncated_files_are_refused_even_when_pillow_was_told_to_accept_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(noise(64, 64), "JPEG")
    with pytest.raises(ImageError):
        load_image(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_too_many_pixels_bytes_or_too_thin_is_refused_before_unpacking():
    # 20000 x 20000 grey pixels of zeros: 400 megapixels in about 400 KB.
    bomb = encoded(Image.new("1", (20000, 20000)))
    assert len(bomb) < 1_000_000
    with pytest.raises(ImageError, match="pixels allowed"):
        load_image(bomb)
    with pytest.raises(ImageError, match="pixels allowed"):
        load_image(noise(100, 100), limits=ImageLimits(max_pixels=9999))
    with pytest.raises(ImageError, match="sliver"):
        load_image(encoded(Image.new("RGB", (500, 2))))
    with pytest.raises(ImageError, match="bytes"):
        load_image(encoded(noise(100, 100)), limits=ImageLimits(max_bytes=1000))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_films_and_pages_are_refused(kind):
    data = encoded(noise(seed=1), kind, save_all=True, append_images=[noise(seed=2)])
    with pytest.raises(ImageError, match="several frames"):
        load_image(data)


def test_the_picture_is_turned_upright_and_its_boxes_mean_the_upright_pixels():
    image = noise(48, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    stored = load_image(encoded(image, exif=exif))
    assert stored.size == (32, 48)
    assert np.array_equal(np.array(stored.image), np.rot90(np.array(image), k=-1))
    assert load_image(stored.data).size == (32, 48), "what is stored needs no turning"


def half_shown(colour):
    """A picture whose left half is transparent."""
    image = Image.new("RGBA", (8, 6), (*colour, 0))
    image.paste((*colour, 255), (4, 0, 8, 6))
    return image


def test_all_kinds_of_pixels_become_rgb():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    cases = {
        "L": (Image.fromarray(grey), np.stack([grey] * 3, axis=2)),
        "16 bit": (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, axis=2)),
        "transparent": (half_shown((255, 0, 0)), np.array([[[255] * 3] * 4 + [[255, 0, 0]] * 4] * 6)),
        "white on nothing": (half_shown((255, 255, 255)), np.array([[[0] * 3] * 4 + [[255] * 3] * 4] * 6)),
        "opaque": (Image.new("RGBA", (8, 6), (255, 0, 0, 255)), np.full((6, 8, 3), (255, 0, 0))),
        "grey with alpha": (Image.new("LA", (8, 6), (10, 255)), np.full((6, 8, 3), 10)),
        "palette": (Image.new("RGB", (8, 6), (0, 0, 255)).quantize(4), np.full((6, 8, 3), (0, 0, 255))),
        "one bit": (Image.new("1", (8, 6), 1), np.full((6, 8, 3), 255)),
    }
    for name, (image, expected) in cases.items():
        stored = load_image(encoded(image))
        assert stored.image.mode == "RGB", name
        assert np.array_equal(np.array(stored.image), expected), name
        again = np.array(Image.open(io.BytesIO(stored.data)).convert("RGB"))
        assert np.array_equal(again, expected), f"{name}: what is stored decodes to the same pixels"
    cmyk = load_image(encoded(Image.new("CMYK", (8, 6), (0, 0, 0, 0)), "JPEG"))
    assert np.array(cmyk.image).min() > 250
    with pytest.raises(ImageError, match="wholly transparent"):
        load_image(encoded(Image.new("RGBA", (8, 6), (255, 0, 0, 0))))
    with pytest.raises(ImageError, match="floating-point"):
        load_image(encoded(Image.new("F", (8, 6)), "TIFF"))


def test_a_plain_file_is_stored_byte_for_byte():
    for kind in ("PNG", "JPEG"):
        data = encoded(noise(), kind)
        assert load_image(data).data == data
        assert load_image({"bytes": data, "path": "/elsewhere/a.png"}).data == data
    assert load_image(encoded(noise(), "BMP")).data.startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_folded_image_unfolds_to_the_same_pixels(mode, form):
    buffer = io.BytesIO()
    try:
        noise().convert(mode).save(buffer, format=form)
    except OSError:
        pytest.skip(f"{form} holds no {mode}")
    stored = load_image(buffer.getvalue())
    folded = stored.folded()
    assert folded.size == stored.size
    assert folded.image.convert("RGB").tobytes() == stored.image.tobytes()
