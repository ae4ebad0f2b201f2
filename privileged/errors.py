"""The errors of this package. Each message is one line that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What the system says when it is the disk that cannot be written, and not the file."""


class PrivilegedError(ValueError):
    """Base of every error that a user's data or configuration can cause."""


class RecordError(PrivilegedError):
    """One record cannot be used. The message is the reason; `prepare` sets the record aside and goes on."""


class ImageError(RecordError):
    """An image of a record cannot be used."""


class ConfigError(PrivilegedError):
    """A setting is wrong. The message names its key."""


class PrepareError(PrivilegedError):
    """A preparation cannot go on, or a prepared folder cannot be read."""


class MissingPrivilege(PrivilegedError):
    """An example lacks what a variant needs. The message names the example's id and what is missing."""


def one_line(error: BaseException) -> str:
    """Another library's message on one line.

    >>> one_line(ValueError("no parquet file:\\n  too short"))
    'no parquet file: too short'
    """
    return " ".join(str(error).split())


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them.

    >>> nearest("box_lable", ["box_label", "caption"])
    "did you mean 'box_label'?"
    >>> nearest("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
