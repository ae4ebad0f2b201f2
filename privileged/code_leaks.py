"""Does a hint for a coding task hold the program, or what the tests expect?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

CODE_LINES, FENCED_LINES = 4, 3
"""So many lines of code in a hint, or in one fenced block, are a solution. A function with its body always is."""

SHORT_OUTPUT = 6
"""Expected outputs of fewer characters leak only where a hint says that they are printed or returned."""

MAX_OUTPUT = 400
MAX_DEPTH = 4

_STATEMENT = re.compile(
    r"^\s*(?:(?:async\s+)?def\s+\w+\s*\(.*\)|class\s+\w+|for\s+.+(?:\bin\b.+:|;.*[;)])|while\b.+[:){]"
    r"|(?:el)?if\b.+[:{]|else\s*[:{]|return\b(?!\s+\w+(?:\s+\w+){2,})|import\s+\w+|from\s+\w+\s+import|#include\b|using\s+namespace"
    r"|print(?:ln|f)?\s*\(|console\.log|try\s*[:{]|with\s+.+:"
    r"|[\w.\[\], ]+\s*(?:[-+*/%|&^]|//|\*\*|<<|>>)?=(?!=)\s*\S+.*"
    r"|(?:const|let|var|int|long|auto|double|float|char|string|vector|bool)\b.*[;({]|.*[;{]\s*$|\s*}.*"
    r"|[\w.]+\(.*\)\s*;?)\s*$"
)
_PLACEHOLDER = re.compile(r"^\s*(?:\.{3}|pass|#.*|//.*|TODO.*)?\s*$")
_FUNCTION = re.compile(r"^(\s*)(?:async\s+)?def\s+\w+\s*\([^\n]*\)[^\n:]*:[ \t]*(\S?[^\n]*)$", re.MULTILINE)
_TELLS = (
    r"(?i:\b(?:returns?|prints?|outputs?|yields?|gives?|output(?:\s+\w+){0,3}\s+(?:is|should be|must be)"
    r"|expected(?:\s+output)?(?:\s+is|:))\s*|->\s*|=>\s*|→\s*|==\s*)[\"'`]?"
)


def code_leak(hints: Iterable[str], answer: str, prompt: str) -> str | None:
    r"""The first hint that holds a solution program or an expected output of the tests in `answer`, or None.

    >>> code_leak(["Read `n`, then loop."], '{"inputs": ["5"], "outputs": ["120"]}', "Print n!.")
    >>> code_leak(["def f(n):\n    return n * f(n - 1) if n else 1"], "[]", "Write f.") is not None
    True
    >>> code_leak(["For 5 it prints 120."], '{"inputs": ["5"], "outputs": ["120"]}', "Print n!.")
    'For 5 it prints 120.'
    """
    outputs = [output for output in dict.fromkeys(expected_outputs(answer)) if output not in prompt]
    patterns = [_output_pattern(output) for output in outputs]
    for hint in hints:
        if holds_program(hint) or any(pattern.search(hint) for pattern in patterns):
            return hint
    return None


def holds_program(text: str) -> bool:
    """Whether a text holds a function with its body, or `CODE_LINES` lines of code."""
    for match in _FUNCTION.finditer(text):
        indent, inline = match.groups()
        body = [line for line in text[match.end() :].splitlines()[1:8] if line.strip()]
        inner = [line for line in body if len(line) - len(line.lstrip()) > len(indent)]
        if inline and not _PLACEHOLDER.match(inline):
            return True
        if inner and not _PLACEHOLDER.match(inner[0]):
            return True
    if _code_lines(text) >= CODE_LINES:
        return True
    return any(_code_lines(block) >= FENCED_LINES for block in text.split("```")[1::2])


def _code_lines(text: str) -> int:
    return sum(1 for line in text.splitlines() if len(line) < 300 and _STATEMENT.match(line))


def _output_pattern(output: str) -> re.Pattern[str]:
    exact = r"\s+".join(re.escape(part) for part in output.split())
    bounded = rf"(?<![\w.]){exact}(?!\w|\.\d)"
    return re.compile(bounded if len(output) >= SHORT_OUTPUT else _TELLS + bounded)


def expected_outputs(answer: str) -> Iterator[str]:
    """What the tests of a coding task expect: from {"outputs": [...]}, [{"output": ...}], or lines of asserts.

    >>> list(expected_outputs('{"inputs": ["1"], "outputs": ["2"]}')), list(expected_outputs("assert f(3) == 4"))
    (['2'], ['f(3) == 4', '4'])
    """
    try:
        tests = json.loads(answer)
    except (ValueError, RecursionError):
        tests = answer
    for output in _outputs(tests, 0):
        if output.strip() and len(output) <= MAX_OUTPUT:
            yield output.strip()


def _outputs(tests: Any, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        return
    if isinstance(tests, str):
        for line in tests.splitlines():
            if line.strip().startswith("assert "):
                claim = line.strip().removeprefix("assert ")
                yield claim
                yield claim.rpartition("==")[2] if "==" in claim else ""
    elif isinstance(tests, list):
        for test in tests:
            yield from _outputs(test, depth + 1)
    elif isinstance(tests, dict):
        for key in ("outputs", "output", "expected", "expected_output"):
            values = tests.get(key)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, str | int | float) and not isinstance(value, bool):
                    yield str(value)
        for key in ("tests", "test_cases", "asserts", "assert_case"):
            yield from _outputs(tests.get(key), depth + 1)
