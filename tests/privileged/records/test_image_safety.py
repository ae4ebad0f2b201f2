"""Images from strangers: odd pixels are shown as they should be, bombs and forbidden addresses are refused."""

import http.server
import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from privileged_samples import noise, raw_record

from dopd_vl.common.errors import ImageError
from privileged.records.images import ImageLimits, load_image
from privileged.records.records import parse_record

LOCAL = ImageLimits(allow_urls=True, allow_private_urls=True, max_bytes=100_000, url_seconds=0.5)


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


def test_every_exif_orientation_is_turned_upright_and_boxes_are_of_the_upright_picture():
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
        record = parse_record(
            raw_record(images=[data], privileged={"boxes": [{"label": "7", "bbox": [40, 4, 47, 30]}]})
        )
        assert np.array_equal(np.array(record.images[0].image), np.array(upright)), orientation
        assert record.findings == [], "the box lies inside the upright picture"
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


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        redirect = {"/file": "file:///etc/hostname", "/private": "http://127.0.0.2:1/x.png", "/again": "/again"}
        if self.path in redirect:
            self.send_response(302)
            self.send_header("Location", redirect[self.path])
            self.end_headers()
        elif self.path.startswith("/good"):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")  # what the bytes are is what counts
            self.end_headers()
            self.wfile.write(encoded(noise()))
        elif self.path == "/text":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")
        elif self.path == "/flood":
            self.send_response(200)
            self.end_headers()
            self._pour(b"x" * 10_000, 1000, 0)
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            self._pour(b"x", 40, 0.05)
        else:
            self.send_error(404)

    def _pour(self, piece, times, pause):
        try:
            for _ in range(times):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass  # the client has seen enough

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched_only_when_the_user_allows_it(address, tmp_path):
    with pytest.raises(ImageError, match="allow_urls"):
        load_image(f"{address}/good.png", tmp_path)
    assert load_image(f"{address}/good.png", limits=LOCAL).size == (48, 32)
    assert load_image({"path": f"{address}/good.png"}, limits=LOCAL).data == encoded(noise())


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "status 404"), ("/text", "no image"), ("/flood", "more than the 100000 bytes"),
        ("/drip", "longer than 0.5 seconds"), ("/file", "status 302"), ("/again", "status 302"),
    ],
)  # fmt: skip
def test_what_a_server_must_not_send_is_refused(address, path, reason):
    with pytest.raises(ImageError, match=reason):
        load_image(address + path, limits=LOCAL)


def test_private_addresses_are_not_reached(address):
    public = ImageLimits(allow_urls=True)
    for url in (f"{address}/good.png", "http://localhost:1/a.png", "http://[::1]:1/a.png", "http://169.254.169.254/x"):
        with pytest.raises(ImageError, match="private address"):
            load_image(url, limits=public)
    for url in ("http://", "http://[", "https://\x00", "http://a b/"):
        with pytest.raises(ImageError):
            load_image(url, limits=public)


def test_a_redirect_into_a_private_network_is_not_followed(address, monkeypatch):
    import ipaddress

    # The server itself counts as public here; what it redirects to does not.
    real = ipaddress.ip_address

    class Public:
        is_global = True

    monkeypatch.setattr(ipaddress, "ip_address", lambda text: Public() if text == "127.0.0.1" else real(text))
    with pytest.raises(ImageError, match=r"127\.0\.0\.2 is a private address"):
        load_image(f"{address}/private", limits=ImageLimits(allow_urls=True))


def test_secrets_in_an_address_are_not_told(address):
    url = address.replace("http://", "http://me:hunter2@") + "/missing?token=hunter2"
    with pytest.raises(ImageError) as caught:
        load_image(url, limits=LOCAL)
    assert "hunter2" not in str(caught.value)
