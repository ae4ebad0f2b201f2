"""Does a program pass a problem's tests? Programs of a model are run only where the user allows it."""

import json
import os
import re
import secrets
from time import monotonic

from dopd_vl.evaluation.sandbox import Limits, run_program
from privileged.records.code_tests import AssertTests, CallTests, StdinTests, parse_tests

ALLOW_CODE = "DOPD_VL_ALLOW_CODE"
"""The environment variable that lets programs run; the settings `allow_code` set it, for workers to see it too."""

SECONDS_PER_PROBLEM = 60.0
TOLERANCE = 1e-6
_FENCE = re.compile(r"```[ \t]*+(\w*+)[^\n`]*+\n(.*?)```", re.DOTALL)  # possessive: linear in any text

# What solutions of contest problems commonly take for granted.
_PRELUDE = """
import bisect, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
inf = float("inf")
"""

# The parts share one module that is not `__main__`, so that the program's own main block does not run.
_DRIVER = """
import sys, types
module = sys.modules["solution"] = types.ModuleType("solution")
for name in ("prelude.py", "solution.py", "tests.py"):
    with open(name, encoding="utf-8") as file:
        exec(compile(file.read(), name, "exec", dont_inherit=True), module.__dict__)
"""

_CALLS = """
import json as _json
with open("calls.json", encoding="utf-8") as _file:
    _name, _calls = _json.load(_file)
_function = getattr(Solution(), _name) if "Solution" in globals() else globals()[_name]
_results = [_function(*_arguments) for _arguments in _calls]
with open("result.json", "w") as _file:
    _json.dump(_results, _file, default=list)
"""


def code_allowed() -> bool:
    return os.environ.get(ALLOW_CODE) == "1"


def allow_code() -> None:
    """Let this process, and those that it starts, run programs that a model wrote."""
    os.environ[ALLOW_CODE] = "1"


def program_of(response: str) -> str | None:
    """The last fenced block of Python in a response, or None.

    >>> program_of("So:\\n```python\\nprint(1)\\n```\\nDone.")
    'print(1)\\n'
    """
    names = ("", "py", "python", "python3")
    blocks = [body for language, body in _FENCE.findall(response) if language.lower() in names]
    return blocks[-1] if blocks else None


def verify_code(response: str, answer: str, limits: Limits | None = None) -> bool | None:
    """Whether the response's program passes every test of `answer` (see `privileged.code_tests`). None, not scored,
    unless programs are allowed.

    A program and its assertions share a process, so one that sets out to cheat can; results of called functions are
    compared out here.

    Raises:
        ValueError: the answer holds no tests.
    """
    if not code_allowed():
        return None
    tests = parse_tests(answer)
    program = program_of(response)
    if program is None:
        return False
    limits = limits or Limits()
    if isinstance(tests, StdinTests):
        return _passes_stdin(program, tests, limits)
    if isinstance(tests, CallTests):
        return _passes_calls(program, tests, limits)
    return _passes_asserts(program, tests, limits)


def _passes_stdin(program: str, tests: StdinTests, limits: Limits) -> bool:
    end = monotonic() + SECONDS_PER_PROBLEM
    for given, wanted in tests.cases:
        done = run_program(program, given, limits)
        if done.code != 0 or monotonic() > end or not _same_lines(done.output, wanted):
            return False
    return True


def _passes_calls(program: str, tests: CallTests, limits: Limits) -> bool:
    calls = json.dumps([tests.function, [arguments for arguments, _ in tests.cases]])
    parts = {"prelude.py": _PRELUDE, "solution.py": program, "tests.py": _CALLS, "calls.json": calls}
    done = run_program(_DRIVER, "", limits, parts)
    if done.code != 0 or done.result is None:
        return False
    try:
        results = json.loads(done.result)
    except (ValueError, RecursionError):
        return False
    if not isinstance(results, list) or len(results) != len(tests.cases):
        return False
    return all(_same_result(result, wanted) for result, (_, wanted) in zip(results, tests.cases, strict=True))


def _passes_asserts(program: str, tests: AssertTests, limits: Limits) -> bool:
    # Success is a word written at the very end, since a program that leaves early also ends with code 0.
    word = secrets.token_hex(16)
    end = f'\nwith open("result.json", "w") as _file:\n    _file.write("{word}")\n'
    parts = {
        "prelude.py": f"{_PRELUDE}\n{tests.before}",
        "solution.py": program,
        "tests.py": "\n".join(tests.statements) + end,
    }
    done = run_program(_DRIVER, "", limits, parts)
    return done.code == 0 and done.result == word


def _same_lines(printed: str, wanted: str) -> bool:
    """Line by line the same, but for space at the ends, and numbers with a fraction within a relative 1e-6."""
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (printed, wanted))
    return len(ours) == len(theirs) and all(
        len(one) == len(other) and all(map(_same_word, one, other)) for one, other in zip(ours, theirs, strict=True)
    )


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return "." in one + other and _close(float(one), float(other))
    except ValueError:
        return False


def _same_result(result: object, wanted: object) -> bool:
    """The same value, or the one value of a list of one, as some sets write what is wanted."""
    if isinstance(wanted, list) and len(wanted) == 1 and _same_value(result, wanted[0]):
        return True
    return _same_value(result, wanted)


def _same_value(one: object, other: object) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) or isinstance(other, float):
        return isinstance(one, int | float) and isinstance(other, int | float) and _close(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_value, one, other))
    return one == other


def _close(one: float, other: float) -> bool:
    try:
        return abs(one - other) <= TOLERANCE * max(1.0, abs(other))
    except OverflowError:  # a whole number beyond all floats
        return False
