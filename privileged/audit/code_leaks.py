"""Does a hint for a coding task hold the program, or what the tests expect?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from dopd_vl.common.errors import RecordError
from privileged.records.code_tests import AssertTests, parse_tests

CODE_LINES, FENCED_LINES = 4, 3
"""So many lines of code in a hint, or in one fenced block, are a solution. A function with its body always is."""

SHORT_OUTPUT = 6
"""Expected outputs of fewer characters leak only where a hint says that they are printed or returned."""

TINY_OUTPUT = 3
"""Results of fewer characters, and single words (YES), leak only beside the input that they belong to."""

MAX_OUTPUT, MAX_CASES = 400, 100
"""Characters of a result, and tests of a task, that are looked for."""

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
    >>> code_leak(["def f(n):\n    return n * f(n - 1) if n else 1"], "{}", "Write f.") is not None
    True
    >>> code_leak(["For 5 it prints 120."], '{"inputs": ["5"], "outputs": ["120"]}', "Print n!.")
    'For 5 it prints 120.'
    """
    cases = dict.fromkeys(case for case in expected_results(answer) if case[1] not in prompt)
    checks = [_tells_result(given, wanted) for given, wanted in cases]
    for hint in hints:
        if holds_program(hint) or any(check(hint) for check in checks):
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


def _tells_result(given: str, wanted: str) -> Callable[[str], bool]:
    """A check of one hint for one test's result."""
    told = re.compile(_TELLS + _bounded(wanted))
    if len(wanted) < TINY_OUTPUT or wanted.isalpha():
        # "Return 0 for an empty list" and "print YES if" are good hints: there the test's input must stand too.
        if not 0 < len(given) <= MAX_OUTPUT:
            return lambda hint: False
        input_too = re.compile(_bounded(given))
        return lambda hint: told.search(hint) is not None and input_too.search(hint) is not None
    if len(wanted) < SHORT_OUTPUT:
        return lambda hint: told.search(hint) is not None
    anywhere = re.compile(_bounded(wanted))
    return lambda hint: anywhere.search(hint) is not None


def _bounded(text: str) -> str:
    words = r"\s+".join(re.escape(part) for part in text.split())
    return rf"(?<![\w.]){words}(?!\w|\.\d)"


def expected_results(answer: str) -> Iterator[tuple[str, str]]:
    """What is given and what is expected, for the first `MAX_CASES` tests of a coding task.

    >>> list(expected_results('{"inputs": ["1 2"], "outputs": ["3"]}'))
    [('1 2', '3')]
    >>> list(expected_results('{"assert_case": ["assert add(1, 2) == 3"]}'))
    [('add(1, 2)', '3')]
    """
    try:
        tests = parse_tests(answer)
    except RecordError:  # parsing the record says what is wrong with its tests
        return
    if isinstance(tests, AssertTests):
        lines = (line.strip() for statement in tests.statements for line in statement.splitlines())
        claims = (line.removeprefix("assert ").partition("==") for line in lines if line.startswith("assert "))
        cases = ((call, wanted) for call, sign, wanted in claims if sign)
    else:
        cases = ((_arguments(given), _shown(wanted)) for given, wanted in tests.cases)
    for given, wanted in islice(cases, MAX_CASES):
        if 0 < len(wanted.strip()) <= MAX_OUTPUT:
            yield given.strip(), wanted.strip()


def _arguments(given: str | list[Any]) -> str:
    return given if isinstance(given, str) else ", ".join(_shown(value) for value in given)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
