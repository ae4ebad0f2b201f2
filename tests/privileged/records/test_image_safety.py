"""Images from strangers: odd pixels are shown as they should be, bombs and forbidden addresses are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from privileged_samples import noise, raw_record

from dopd_vl.common.errors import ImageError, RecordError
from privileged.records.images import load_image
from privileged.records.records import parse_record


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_of(width, height, depth, colour, rows, extra=()):
    """A PNG made by hand, for what Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = b"".join(chunk(name, data) for name, data in extra)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_every_exif_orientation_is_turned_upright_and_boxes_must_be_known_to_be_of_the_upright_picture():
    upright = noise(48, 32)
    # What the camera stored for each orientation, so that the reader's turn undoes it.
    stored_as = {
        1: upright, 2: ImageOps.mirror(upright), 3: upright.rotate(180), 4: ImageOps.flip(upright),
        5: upright.transpose(Image.Transpose.TRANSPOSE), 6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE), 8: upright.transpose(Image.Transpose.ROTATE_270),
    }  # fmt: skip
    for orientation, picture in stored_as.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture, exif=exif)
        boxed = raw_record(images=[data], privileged={"boxes": [{"label": "7", "bbox": [40, 4, 47, 30]}]})
        plain = parse_record({**boxed, "privileged": None})
        assert np.array_equal(np.array(plain.images[0].image), np.array(upright)), orientation
        assert [finding.code for finding in plain.findings] == ["image_turned"] * (orientation > 1)
        if orientation > 1:
            with pytest.raises(RecordError, match="before or after"):
                parse_record(boxed)
        if orientation in (2, 3, 4):  # the size is the same before and after
            with pytest.raises(RecordError, match="before or after"):
                parse_record({**boxed, "image_sizes": [upright.size]})
            continue
        record = parse_record({**boxed, "image_sizes": [upright.size]})
        assert record.privileged["boxes"][0]["bbox"] == [40, 4, 47, 30]
        assert load_image(record.images[0].data).size == (48, 32), "what is stored needs no turning"


def test_cmyk_photos_with_adobes_inverted_inks_keep_their_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(red, "JPEG", quality=95)
    assert b"Adobe" in data
    stored = load_image(data)
    assert np.abs(np.array(stored.image).astype(int) - (255, 0, 0)).max() < 12
    assert Image.open(io.BytesIO(stored.data)).mode == "RGB"


def test_sixteen_bit_colour_is_scaled_to_eight():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint16).reshape(4, 6, 3) * 900
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    stored = load_image(png_of(6, 4, 16, 2, rows))
    assert np.abs(np.array(stored.image).astype(int) - np.round(pixels / 257)).max() <= 1


def test_a_transparent_palette_is_laid_on_white():
    image = Image.new("P", (8, 6), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 6))
    pixels = np.array(load_image(encoded(image, transparency=0)).image)
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == (0, 0, 255)).all()


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_chunks_that_unpack_to_far_more_than_they_weigh_are_refused(name):
    bomb = zlib.compress(b"\0" * 80_000_000, 9)
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[name]
    data = png_of(2, 2, 8, 2, b"\0" + b"\1" * 6 + b"\0" + b"\1" * 6, [(name, head + bomb)])
    assert len(data) < 100_000
    with pytest.raises(ImageError, match="damaged"):
        load_image(data)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ImageError):
        load_image(png_of(0, 4, 8, 2, b""))
    with pytest.raises(ImageError, match="0 x 5"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/a.png",
        "https://example.org/a.png",
        "HTTPS://me:hunter2@a/b?token=hunter2",
        "http://[",
        "ftp://a",
    ],
)
def test_an_address_is_refused_with_what_to_do_and_nothing_is_fetched(address, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("something was asked for"))
    for root in (tmp_path, None):
        for given in (address, {"path": address}):
            with pytest.raises(ImageError, match="download it into the image folder") as caught:
                load_image(given, root)
            assert "hunter2" not in str(caught.value), "an address may hold secrets"
