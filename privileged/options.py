"""The options that a multiple-choice prompt lists."""

from __future__ import annotations

import re

# A letter at the start of a line or after a space, closed by ")" or ".", and text up to the next one or the line's end.
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-J])[).:]\s+(\S[^\n]{0,300}?)(?=\s+\(?[A-J][).:]\s|\s*$)", re.MULTILINE)


def listed_options(prompt: str) -> dict[str, str]:
    r"""Letter to text; empty unless the prompt lists at least A and B.

    >>> listed_options("Which? (A) the red ball (B) the cube")
    {'A': 'the red ball', 'B': 'the cube'}
    >>> listed_options("Which?\nA. one mile\nB. a kilometre")
    {'A': 'one mile', 'B': 'a kilometre'}
    >>> listed_options("Vitamin B. What is it?")
    {}
    """
    found: dict[str, str] = {}
    for match in _OPTION.finditer(prompt):
        found.setdefault(match.group(1), match.group(2).strip().rstrip(".,;"))
    return found if {"A", "B"} <= set(found) else {}
