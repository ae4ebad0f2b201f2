"""Text of others as it is printed and reported: what it would do to a terminal or a reader is seen, and not done."""

import re
import sys
import unicodedata

MAX_NAME = 80
"""Characters of one name in a card."""

_DOUBTFUL = re.compile(r"[^\x20-\x7e\n\t]")
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>&~$:-])")
_SEEN_AS_NOTHING = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def visible(text: str) -> str:
    r"""A text of which every sign can be seen: what moves the cursor, turns the direction of writing, has no width or
    is half of a pair is written out. Line ends and tabs stay.

    >>> visible("caf\u00e9 \x1b[31m \u202egnp.a a\u200bb \ud83d")
    'café \\x1b[31m \\u202egnp.a a\\u200bb \\ud83d'
    """
    return text if text.isascii() and text.isprintable() else _DOUBTFUL.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    sign = found.group()
    seen = sign.isprintable() or unicodedata.category(sign) == "Zs"
    return sign if seen and sign not in _SEEN_AS_NOTHING else sign.encode("unicode_escape").decode("ascii")


def one_visible_line(text: str) -> str:
    """The same on one line: no text of others begins a line of its own."""
    return visible(" ".join(text.split()))


def in_card(value: object) -> str:
    """Any text as one short line that Markdown and HTML take for nothing but text: a card is shown as a web page.

    >>> in_card("a|b <script>")
    'a\\\\|b \\\\<script\\\\>'
    """
    text = one_visible_line(str(value))
    if len(text) > MAX_NAME:
        text = text[: MAX_NAME - 1] + "…"
    return _MARKUP.sub(r"\\\1", text).replace("www.", r"www\.")


def print_line(text: str, error: bool = False) -> None:
    """Print lines of ours to standard output, or standard error, whatever signs that can take."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(visible(text).encode(encoding, "backslashreplace").decode(encoding), file=stream)
