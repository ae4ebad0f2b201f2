"""The errors that a user's settings or data can cause: one line that says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of all of them. The command line shows it as one line, without a traceback, with exit code 2."""


class ConfigurationError(UserError):
    """A setting is wrong; the message names its key and the file or option it came from."""


class RecordError(UserError):
    """One record cannot be used. The message is the reason; `prepare` sets the record aside and goes on.

    Args:
        record: The record's name, where its source could not give its id: the file that it would have come from.
    """

    def __init__(self, reason: str, record: str | None = None):
        super().__init__(reason)
        self.record = record


class ImageError(RecordError):
    """An image of a record cannot be used."""


class PrepareError(UserError):
    """A preparation cannot go on, or a prepared folder cannot be read."""


class MissingPrivilege(UserError):
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
    >>> nearest("dpod", ["sdpo", "dopd"])
    "did you mean 'dopd'?"
    >>> nearest("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=len(names) or 1)
    close.sort(key=lambda name: sorted(name) != sorted(word))  # letters that changed places are the likeliest slip
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
