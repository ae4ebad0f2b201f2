r"""The tests of a programming problem, as the answer of a record with the task `code` holds them. Nothing is run here.

The answer is JSON, in one of the forms that public sets use:

- {"inputs": ["1 2\n", ...], "outputs": ["3\n", ...]}: a program reads standard input and prints (TACO, APPS, Skywork);
  the same as a list [{"input": ..., "output": ...}, ...] (LiveCodeBench);
- {"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [3, ...]}: a function, or a method of `class Solution`, is
  called; an input may also be text with one JSON argument a line (LiveCodeBench);
- {"entry_point": "Solution().add", "import_prefix": "...", "test_code": "def check(candidate): ..."} (LeetCode);
- {"assert_case": ["assert add(1, 2) == 3", ...]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dopd_vl.common.errors import RecordError

TESTS_SHOWN, CHARACTERS_SHOWN = 3, 400
"""Tests that are shown to a model, and the characters of each text in them."""


@dataclass(frozen=True)
class StdinTests:
    """Standard input and what must be printed for it."""

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CallTests:
    """Arguments of a function and what it must return, or a list of just that (as APPS and TACO write results)."""

    function: str
    cases: tuple[tuple[list[Any], Any], ...]


@dataclass(frozen=True)
class AssertTests:
    """Python statements that must run without an error behind the program, which `before` is put in front of."""

    before: str
    statements: tuple[str, ...]


CodeTests = StdinTests | CallTests | AssertTests


def parse_tests(answer: str) -> CodeTests:
    """The tests of a record; RecordError when there are none, or in no known form.

    >>> parse_tests('{"inputs": ["1 2"], "outputs": ["3"]}')
    StdinTests(cases=(('1 2', '3'),))
    >>> parse_tests('{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}')
    CallTests(function='add', cases=(([1, 2], 3),))
    """
    try:
        tests = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"answer: the tests are no JSON ({error})") from error
    if isinstance(tests, list):
        if not all(isinstance(case, Mapping) and "input" in case and "output" in case for case in tests):
            raise RecordError("answer: a list of tests must hold mappings with input and output")
        if any(case.get("testtype", "stdin") != "stdin" for case in tests):
            raise RecordError("answer: a list of tests does not name its function; give fn_name, inputs and outputs")
        tests = {"inputs": [case["input"] for case in tests], "outputs": [case["output"] for case in tests]}
    if not isinstance(tests, Mapping):
        raise RecordError(f"answer: the tests are a {type(tests).__name__}, in no known form")
    if "test_code" in tests:
        return _harness(tests)
    if "assert_case" in tests:
        cases = tests["assert_case"]
        if not isinstance(cases, list) or not cases or not all(isinstance(case, str) for case in cases):
            raise RecordError("answer: assert_case must be a list of texts, and not empty")
        return AssertTests("", tuple(cases))
    return _inputs_and_outputs(tests)


def _harness(tests: Mapping[str, Any]) -> AssertTests:
    parts = [tests.get(key, "") for key in ("import_prefix", "test_code", "entry_point")]
    if not all(isinstance(part, str) for part in parts) or not parts[1] or not parts[2]:
        raise RecordError("answer: test_code and entry_point must be texts, and not empty")
    return AssertTests(parts[0], (f"{parts[1]}\ncheck({parts[2]})",))


def _inputs_and_outputs(tests: Mapping[str, Any]) -> CodeTests:
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        raise RecordError("answer: the tests need inputs and outputs, lists of one length, and not empty")
    function = tests.get("fn_name")
    if function is None:
        return StdinTests(tuple((_lines(given), _lines(wanted)) for given, wanted in zip(inputs, outputs, strict=True)))
    if not isinstance(function, str) or not function.isidentifier():
        raise RecordError(f"answer: fn_name {function!r} is no name of a function")
    cases = [_call(given, wanted) for given, wanted in zip(inputs, outputs, strict=True)]
    return CallTests(function, tuple(cases))


def _lines(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise RecordError("answer: inputs and outputs of a program must be texts, or lists of lines")
    return value


def _call(given: Any, wanted: Any) -> tuple[list[Any], Any]:
    if isinstance(given, list):
        return given, wanted
    if not isinstance(given, str):
        raise RecordError("answer: an input of a function must be the list of its arguments")
    try:
        arguments = [json.loads(line) for line in given.splitlines() if line.strip()]
        return arguments, json.loads(wanted) if isinstance(wanted, str) else wanted
    except ValueError as error:
        raise RecordError(f"answer: an input of a function is neither a list nor JSON a line ({error})") from error


def first_tests(answer: str) -> str:
    r"""The first few tests of a record for a model to read, each text cut short.

    >>> print(first_tests('{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}'))
    (a program that passes tests such as these)
    input: 1 2
    output: 3
    >>> print(first_tests('{"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}'))
    (a program that passes tests such as these)
    add([1, 2]) gives 3
    add([3, 4]) gives 7
    """
    tests = parse_tests(answer)
    if isinstance(tests, StdinTests):
        shown = [f"input: {_cut(given)}\noutput: {_cut(wanted)}" for given, wanted in tests.cases[:TESTS_SHOWN]]
    elif isinstance(tests, CallTests):
        shown = [f"{tests.function}({_cut(given)}) gives {_cut(wanted)}" for given, wanted in tests.cases[:TESTS_SHOWN]]
    else:
        shown = [_cut(statement) for statement in tests.statements[:TESTS_SHOWN]]
    return "\n".join(["(a program that passes tests such as these)", *shown])


def _cut(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[:CHARACTERS_SHOWN]} ..."
