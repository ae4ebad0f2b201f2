"""A server over HTTP: asked again after what passes, waited for while it starts anew, never read without a limit."""

import json
import random
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx2

from dopd_vl.common.errors import ConfigurationError, UserError, one_line
from dopd_vl.common.http import check_address, read_key, retry_after, spellings
from dopd_vl.common.visible import one_visible_line
from dopd_vl.train_config import ServerSettings

PASSES = (408, 409, 425, 429)
"""Statuses, beside those above 500, after which a request is sent again for as long as the server is waited for."""
TRIES = 5
"""Of a request that is answered by 500: a server that broke, or one that says so of a request at fault, as vLLM does of
images that it cannot place."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries; each pause is twice the last one, and shortened by chance so that processes part."""
TOLD_AFTER = 5.0
"""Seconds of waiting after which it is said that a server is waited for."""
SMALL = 1 << 20
"""Bytes that are read of an answer which says how long it may be by nothing, and of one with an error status."""
_SAID = 300


_READING = threading.Lock()
Result = TypeVar("Result")


class ServerGone(UserError):
    """A server has not answered for as long as it is to be waited for."""


class RequestRefused(UserError):
    """A server will not do what it was asked, however often it is.

    Args:
        status: of its answer.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class BadAnswer(UserError):
    """An answer is not what was asked for."""


class Server:
    """Asks one server; safe to use from several threads.

    Args:
        address: as http://HOST:PORT, of what serves; paths are added to it.
        settings: how long it is waited for, and with which key it is asked.
        key: the setting that names the server, which every error begins with.
        section: the setting below which its name and its key are given.

    Raises:
        ConfigurationError: the key of the server is not there, or the address holds a password.
    """

    def __init__(
        self, address: str, settings: ServerSettings, key: str = "model.teacher", section: str = "model.server"
    ):
        check_address(address, key, f"{section}.key_env")
        self.address = address.rstrip("/").removesuffix("/v1")
        self.key, self.told_as = key, f"{key}: {self.address}"
        self._settings, self._stopped, self._told_of_waiting = settings, threading.Event(), False
        self.section = section
        secret = read_key(settings.key_env, f"{section}.key_env")
        self._secret = None if secret is None else spellings(secret)
        headers = {"Accept-Encoding": "identity"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(settings.timeout, connect=min(30.0, settings.timeout)),
            limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            follow_redirects=False,  # a server that is trusted with the questions may not send them on to another
        )

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        most: int = SMALL,
        read: Callable[[Any], Result] = lambda value: value,
    ) -> Result:
        """What `read` makes of the JSON value that the server answers with.

        Args:
            path: from its root, as "/v1/models".
            body: is posted as JSON; without one the path is got.
            most: bytes that are read of the answer.
            read: one answer at a time is taken apart, whatever threads wait for theirs: as Python's values it takes
                seven times the memory.

        Raises:
            RequestRefused: the status says that the request is at fault.
            BadAnswer: the answer is longer, or no JSON.
            ServerGone: there was none for `settings.wait` seconds.
        """
        first_failure: float | None = None
        timeout = self._settings.timeout
        pause, broken = FIRST_PAUSE, 0
        while True:
            begun = time.monotonic()
            try:
                answer = self._once(path, body, most, read, timeout)
                self._told_of_waiting = False
                return answer
            except _Passing as error:
                broken += error.status == 500
                if broken == TRIES:
                    raise RequestRefused(f"{self.told_as}, {TRIES} times: {error}", 500) from None
                first_failure = begun if first_failure is None else first_failure
                left = first_failure + self._settings.wait - time.monotonic()
                self._tell_of_waiting(self._settings.wait - left, error)
                if left <= 0:
                    waited = time.monotonic() - first_failure
                    raise ServerGone(
                        f"{self.told_as} does not answer, and was waited for {waited:.1f} s (model.server.wait): "
                        f"{error}"
                    ) from None
                timeout = min(timeout, max(left, 1.0))
                wanted = pause * random.uniform(0.5, 1.0) if error.after is None else error.after
                pause = min(2 * pause, LONGEST_PAUSE)
                if self._stopped.wait(min(wanted, left)):
                    raise ServerGone(f"{self.told_as}: no longer asked") from None

    def _tell_of_waiting(self, waited: float, error: Exception) -> None:
        """One line of each time that the server is away, once it has been away for a while."""
        if waited >= TOLD_AFTER and not self._told_of_waiting:
            self._told_of_waiting = True
            warnings.warn(  # the time: of a second outage it is said again
                f"{time.strftime('%H:%M:%S')}, {self.told_as} does not answer ({error}); it is waited for, "
                f"{self._settings.wait:g} s at most (model.server.wait)",
                stacklevel=3,
            )

    def _once(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        most: int,
        read_value: Callable[[Any], Result],
        timeout: float,
    ) -> Result:
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        deadline = time.monotonic() + timeout
        try:
            with self._client.stream(
                method,
                self.address + path,
                content=content,
                headers={"Content-Type": "application/json"},
                timeout=httpx2.Timeout(timeout, connect=min(30.0, timeout)),
            ) as response:
                packed = response.headers.get("content-encoding", "identity")
                if packed != "identity":
                    raise BadAnswer(f"{self.told_as} packs its answer as {packed[:40]!r}, although it was asked not to")
                limit = most if response.is_success else SMALL
                read = bytearray()
                for piece in response.iter_raw():
                    read += piece
                    if len(read) > limit:
                        break
                    if time.monotonic() > deadline:
                        raise _Passing(f"no whole answer within {timeout:g} s (model.server.timeout)")
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise ConfigurationError(f"{self.told_as} is no address that can be asked ({one_line(error)})") from None
        except (httpx2.TransportError, OSError) as error:
            raise _Passing(self._blotted(f"{type(error).__name__}: {error}")) from None
        if not response.is_success:
            raise self._of_status(response.status_code, response.headers, bytes(read))
        if len(read) > limit:
            raise BadAnswer(f"{self.told_as} answered {path} with more than {limit} bytes")
        with _READING:
            try:
                value = json.loads(read)
            except (ValueError, RecursionError):
                # A proxy's page, or what a server that was ended had written by then.
                raise _Passing(f"its answer to {path} is no JSON: {self._said(bytes(read))!r}") from None
            return read_value(value)

    def _of_status(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        said = f"answered {status}: {self._said(body)}"
        if status in PASSES or status >= 500:
            return _Passing(f"it {said}", retry_after(headers), status)
        if 300 <= status < 400:
            said = f"answered {status}: it sends on to another address, where nothing is sent; if it is right, name it"
        elif status == 401:
            said += f"; {self.section}.key_env names the environment variable with its key"
        return RequestRefused(f"{self.told_as} {said}", status)

    def _said(self, body: bytes) -> str:
        """What an error says, without the key and on one line."""
        text = body.decode("utf-8", "replace")
        try:
            value = json.loads(text)
            inner = value.get("error", value)
            text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
        except (ValueError, RecursionError, AttributeError):
            pass
        return one_visible_line(self._blotted(text))[:_SAID]

    def _blotted(self, text: str) -> str:
        return text if self._secret is None else self._secret.sub("***", text)

    def rename(self, key: str) -> None:
        """The setting that names it is another one."""
        self.key, self.told_as = key, f"{key}: {self.address}"

    def stop(self) -> None:
        """End the pauses of all that is being asked again."""
        self._stopped.set()

    def go_on(self) -> None:
        """Undo `stop`."""
        self._stopped.clear()


class _Passing(Exception):
    """The same request may be answered later, `after` so many seconds where the server says so."""

    def __init__(self, reason: str, after: float | None = None, status: int = 0):
        super().__init__(reason)
        self.after, self.status = after, status
