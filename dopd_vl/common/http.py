"""What every client of a foreign server needs: its key, and how long it asks to wait. Nothing here sends anything."""

import email.utils
import math
import os
import re
import time
from collections.abc import Mapping

from dopd_vl.common.errors import ConfigurationError

LEAST_SECRET = 8
"""Characters of a key. Shorter ones ("EMPTY", "x") are stand-ins for servers without keys, and may be any word."""


def read_key(variable: str | None, key_env: str) -> str | None:
    """The key that an environment variable holds; None where there is none.

    Args:
        key_env: the setting that names the variable, for errors.

    Raises:
        ConfigurationError: it is not set, or holds what no key is.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigurationError(
            f"{key_env}: the environment variable {variable} is not set; set it, or key_env: null for an "
            "endpoint without a key"
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigurationError(f"{key_env}: the value of {variable} holds signs that no key has")
    return key


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: a number, or a date (RFC 9110, 10.2.3).

    >>> retry_after({"retry-after": "2.5"})
    2.5
    """
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def spellings(key: str) -> re.Pattern[str]:
    r"""Finds a key as it is, and as JSON and Python may escape it, once or several times over.

    >>> [bool(spellings("a/b").fullmatch(text)) for text in ("a/b", r"\u0061\/b", r"\\u0061/\x62", "a/c")]
    [True, True, True, False]
    """
    escapes = (f"(?:u00|x)(?i:{ord(sign):02x})" for sign in key)
    signs = (rf"(?:\\{{0,8}}{re.escape(sign)}|\\{{1,8}}{escape})" for sign, escape in zip(key, escapes, strict=True))
    return re.compile("".join(signs))


def is_address(name: str) -> bool:
    """Whether a model's name is the address of a server.

    >>> [is_address(name) for name in ("http://127.0.0.1:8000", "HTTPS://teacher", "Qwen/Qwen3-8B", "nano:a")]
    [True, True, False, False]
    """
    return name.lower().startswith(("http://", "https://"))


def check_address(address: str, key: str, key_env: str) -> None:
    """Whether an address may stand in files and messages.

    Args:
        key: the setting that has it.
        key_env: the setting that names the variable with a server's key.

    Raises:
        ConfigurationError: it holds a password, or a query that may hold a key; the address is not repeated.
    """
    if set("@?#") & set(address):
        raise ConfigurationError(
            f"{key}: an address with a password or a query in it would stand in files and messages; {key_env} names "
            "the environment variable that holds a server's key"
        )
