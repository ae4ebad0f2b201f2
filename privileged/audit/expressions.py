r"""Mathematical expressions in text, compared after normalisation: \dfrac{\sqrt2}{2} is √2/2, x² + 1 is x^{2}+1.

The comparison is of signs, not of meaning: 1 + x is not found where the answer is x + 1.
"""

from __future__ import annotations

import re

_SYMBOLS = {
    "pi": "π", "infty": "∞", "leq": "≤", "le": "≤", "geq": "≥", "ge": "≥", "neq": "≠", "ne": "≠", "cdot": "",
    "times": "",     "cup": "∪", "pm": "±", "lbrace": "{", "rbrace": "}", "dfrac": "\\frac", "tfrac": "\\frac",
}  # fmt: skip
_NAMED = re.compile(rf"\\({'|'.join(sorted(_SYMBOLS, key=len, reverse=True))})(?![a-zA-Z])\s?")
_ASCII = [("<=", "≤"), (">=", "≥"), ("!=", "≠"), ("\\{", "{"), ("\\}", "}"), ("+∞", "∞"), ("·", ""), ("*", "")]
_ROOT = re.compile(r"\\sqrt\s*(?:\{([^{}]*)\}|(\w))")
_ROOT_SIGN = re.compile(r"√\s*(?:\((\w+)\)|\{(\w+)\})")
_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_SCRIPT = re.compile(r"([\^_])\s*\{([^{}]*)\}")
_SCRIPT_IN_PARENTHESES = re.compile(r"([\^_])\s*\((\w+)\)")
_ATOM = re.compile(r"-?√?(?:\d+|[^\W\d]+)")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|\S")
_BRACKETED = re.compile(r"^[\[({].*,.*[\])}]$")
_SIGN = re.compile(r"[√π∞^≤≥≠=±∪\\]|\b(?:\d+|[a-z])\s?[-+/]\s?(?:\d+|[a-z])\b|\)/\(|^\d+[a-z]$")
_RELATION = re.compile(r"[≤≥≠=<>]")
MAX_NESTING = 4
MAX_LENGTH = 120

# Not a piece of a longer expression: "2π" is not found in "2π r", "2π/k", "12π" or "f(2π)".
_BEFORE = r"(?<![\w.√^/+\-])(?<![-+/^]\s)(?<!\w\()"
_AFTER = r"(?!\w|\s?[+/^√π∞]|\s?-\s?[\w(]|\.\d|\)\s?[\^/(]|\s(?!a\b)[A-Za-z]\b|\s(?:times|or)\b)"


def normalised(text: str) -> str:
    r"""Cleaned text with one writing for what is the same expression.

    >>> normalised(r"\dfrac{\sqrt2}{2}"), normalised(r"x^{2}+1"), normalised(r"\frac{x+1}{2\cdot\pi}")
    ('√2/2', 'x^2+1', '(x+1)/(2π)')
    """
    text = _NAMED.sub(lambda match: _SYMBOLS[match.group(1)], text)
    for before, after in _ASCII:
        text = text.replace(before, after)
    for _ in range(MAX_NESTING):
        text = _ROOT.sub(lambda match: "√" + _grouped(match.group(1) or match.group(2) or ""), text)
        text = _SCRIPT.sub(lambda match: match.group(1) + _grouped(match.group(2)), text)
        text = _FRACTION.sub(
            lambda match: (
                f"{_grouped(match.group(1) or match.group(2) or '')}/{_grouped(match.group(3) or match.group(4) or '')}"
            ),
            text,
        )
    text = _SCRIPT_IN_PARENTHESES.sub(r"\1\2", text)
    return _ROOT_SIGN.sub(lambda match: "√" + (match.group(1) or match.group(2)), text)


def _grouped(part: str) -> str:
    part = part.strip()
    return part if _ATOM.fullmatch(part) else f"({part})"


def is_expression(text: str) -> bool:
    """Whether a normalised answer is an expression and no words."""
    return len(text) <= MAX_LENGTH and bool(_SIGN.search(text) or _BRACKETED.search(text))


def expression_pattern(text: str) -> str:
    """A regular expression for a normalised expression, whatever its spaces."""
    return _BEFORE + r"\s?".join(re.escape(token) for token in _TOKEN.findall(text)) + _AFTER


def is_telling(text: str) -> bool:
    """Whether an expression gives an answer away wherever it stands. Short ones (2π, π/2) have other uses."""
    return len(_TOKEN.findall(text)) > 3 or bool(_RELATION.search(text))
