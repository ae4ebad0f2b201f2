"""Worked steps: what a program of operations comes to, one equation a step."""

import ast
from collections.abc import Sequence
from typing import NamedTuple

SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
LARGEST = 1000
"""No number of a worked step is larger: a small model multiplies no thousands."""


class Unworkable(ValueError):
    """A program that has no short and exact working."""


class Working(NamedTuple):
    """The steps of a program, in the order in which they are worked, and what it comes to."""

    equations: list[str]
    value: float


def shown(value: float) -> str:
    """A number as it is written, with at most two decimals.

    >>> shown(2.40), shown(-7.0)
    ('2.4', '-7')
    """
    text = f"{value:.2f}"
    if abs(float(text) - value) > 1e-9 or abs(value) > LARGEST:
        raise Unworkable(f"{value} is not written with two decimals, or large")
    return text.rstrip("0").rstrip(".")


def equation(left: float, sign: str, right: float) -> tuple[str, float]:
    """One operation written out, and its result.

    >>> equation(3, "-", -2)
    ('3 - -2 = 5', 5)
    """
    try:
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if sign == "/" else 0}[sign]
    except ZeroDivisionError:
        raise Unworkable("it divides by zero") from None
    return f"{shown(left)} {sign} {shown(right)} = {shown(value)}", value


def work_out(program: str, most_steps: int) -> Working:
    """The working of a program such as `multiply(divide(120, 50), 100)`.

    >>> work_out("multiply(divide(120, 50), 100)", most_steps=2)
    Working(equations=['120 / 50 = 2.4', '2.4 * 100 = 240'], value=240.0)

    Raises:
        Unworkable: it has other operations or more of them, or numbers that are large or have many decimals.
    """
    try:
        tree = ast.parse(program, mode="eval").body
    except (SyntaxError, ValueError):
        raise Unworkable(f"{program!r} is no program") from None
    equations: list[str] = []
    value = _evaluate(tree, equations)
    if not 1 <= len(equations) <= most_steps:
        raise Unworkable(f"{len(equations)} steps")
    return Working(equations, value)


def _evaluate(node: ast.expr, equations: list[str]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Call(func=ast.Name(id=name), args=[left, right], keywords=[]) if name in SIGNS:
            text, result = equation(_evaluate(left, equations), SIGNS[name], _evaluate(right, equations))
            equations.append(text)
            return result
    raise Unworkable(f"{ast.unparse(node)} is no operation of two numbers")


def executed(steps: Sequence[str], equations: Sequence[str]) -> list[str]:
    """Each step in words with its equation.

    >>> executed(["Divide 120 by 50.", "Multiply result by 100."], ["120 / 50 = 2.4", "2.4 * 100 = 240"])
    ['Divide 120 by 50: 120 / 50 = 2.4.', 'Multiply result by 100: 2.4 * 100 = 240.']
    """
    return [f"{step.rstrip('.')}: {done}." for step, done in zip(steps, equations, strict=True)]
