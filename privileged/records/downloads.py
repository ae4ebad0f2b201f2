"""Bytes of http and https addresses, for users who allow them. Its size, pace and redirects are not trusted.

Each connection goes to an address that was checked after the name was looked up, so that a name cannot lead into a
private network, neither at once nor by a redirect. Proxies of the environment are not used: behind one, the check
would see the proxy's address only.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from dopd_vl.common.errors import ImageError

PIECE = 64 * 1024


def fetch(url: str, max_bytes: int, seconds: float, allow_private: bool) -> bytes:
    """The body behind an address; ImageError with the reason when it cannot or must not be had.

    Args:
        max_bytes: A larger body is refused once so much was read.
        seconds: For connecting and reading together.
        allow_private: Also loopback, link-local and private addresses.
    """
    shown = _shown(url)
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        _Http(allow_private),
        _Https(allow_private),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    end = time.monotonic() + seconds
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "dopd-vl", "Accept": "image/*"})
        with opener.open(request, timeout=seconds) as response:
            data = bytearray()
            while piece := response.read1(PIECE):
                data += piece
                if len(data) > max_bytes:
                    raise ImageError(f"{shown} has more than the {max_bytes} bytes allowed")
                if time.monotonic() > end:
                    raise ImageError(f"{shown} took longer than {seconds:g} seconds")
            return bytes(data)
    except ImageError:
        raise
    except urllib.error.HTTPError as error:
        raise ImageError(f"{shown} cannot be fetched (status {error.code})") from error
    except TimeoutError as error:
        raise ImageError(f"{shown} took longer than {seconds:g} seconds") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, _Refused):
            raise ImageError(f"{shown}: {cause}") from error
        raise ImageError(f"{shown} cannot be fetched ({type(cause).__name__})") from error


def _shown(url: str) -> str:
    """An address for messages, without what may be secret in it: password and query.

    >>> _shown("https://me:secret@example.org/a.png?token=1")
    'https://example.org/a.png'
    """
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"[:300]
    except ValueError:
        return "the address"


class _Refused(OSError):
    """An address that must not be reached."""


def _connect(host: str, port: int, timeout: float | None, allow_private: bool) -> socket.socket:
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not allow_private and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            raise _Refused(f"{host} is a private address; images.allow_private_urls: true allows these")
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
            return connection
        except OSError as failed:
            connection.close()
            error = failed
    raise error


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, host: str, allow_private: bool, **options: Any):
        super().__init__(host, **options)
        self._allow_private = allow_private

    def connect(self) -> None:
        self.sock = _connect(self.host, self.port, self.timeout, self._allow_private)


class _HttpsConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, allow_private: bool, **options: Any):
        super().__init__(host, **options)
        self._allow_private = allow_private

    def connect(self) -> None:
        import ssl

        plain = _connect(self.host, self.port, self.timeout, self._allow_private)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, allow_private: bool):
        super().__init__()
        self._connection = functools.partial(_HttpConnection, allow_private=allow_private)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, allow_private: bool):
        super().__init__()
        self._connection = functools.partial(_HttpsConnection, allow_private=allow_private)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)
