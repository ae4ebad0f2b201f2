"""Does a hint give away what it must not: the answer, or a step already worked out?

The checks keep false alarms low at the price of some misses, since a hint that is set aside wrongly is lost:

- A number of two or more digits leaks when it stands in a hint as a number of its own, however it is written ("1,250",
  "1250.0", "one thousand two hundred fifty"), unless the prompt holds it too: then it may be a given quantity.
- A number of one digit, one that the prompt holds, an option letter, a common word (yes, left) or a word that the
  prompt offers leaks only when it is stated: "the answer is 7", "= 7", "which gives 7", "choose (B)", "B is correct".
- An equation that the prompt holds is restated, not leaked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation

_UNIT_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TEN_WORDS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = {word: number for number, word in enumerate(_UNIT_WORDS)}
TENS = {word: 10 * number for number, word in enumerate(_TEN_WORDS, start=2)}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
COMMON_WORDS = (
    "yes", "no", "true", "false", "left", "right", "above", "below", "equal", "same", "none", "both", "more", "less",
    "up", "down", "even", "odd", "first", "second", "last", "top", "bottom", "middle", "before", "after",
)  # fmt: skip
"""Answers that hints use in other senses."""

_NUMBER_WORD = "|".join(sorted([*UNITS, *TENS, *SCALES], key=len, reverse=True))
_WORDED_NUMBER = re.compile(rf"\b(?:{_NUMBER_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_NUMBER_WORD}))*\b", re.IGNORECASE)
# A number of its own: not a piece of a word, of a version (1.2.3), or of an ordinal (12th).
_NUMBER = r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?![\w/]|[.,]\d)"
_NUMBER_PATTERN = re.compile(_NUMBER)
_STEP_NUMBER = re.compile(r"^\s*(?:step\s*\d+\s*[:.)-]?|\(?\d+[.):](?=\s))\s*", re.IGNORECASE)
_LATEX_WRAPPER = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}")

# How an answer is stated. Each is a prefix, the answer, and what must follow; words in any case, the answer as it is.
_IS = r"\s*(?:(?:is|was|equals|must be|should be|will be|comes to|becomes|would be)\s*:?|[:=])\s*"
_FILLER = r"(?:exactly\s+|simply\s+|therefore\s+|option\s+|choice\s+|equal to\s+|the\s+)*[\"'(]*"
_ANSWER_IS = (rf"(?i:\b(?:answer|result|solution|(?:correct|right)\s+(?:option|choice|letter)){_IS}{_FILLER})", "")
_QUANTITY_IS = (rf"(?i:\b(?:total|sum|difference|product|quotient|count|value){_IS}{_FILLER})", "")
_DERIVED = (
    r"(?i:=\s*|\b(?:equals|is equal to|gives?|giving|yields?|gets?|obtains?|makes|making|leaves|leaving)\s+"
    r"(?:you\s+|us\s+|a\s+total\s+of\s+|exactly\s+|the\s+(?:answer|result|value|number)\s+)*)",
    r"(?!\s*[-+*/×÷^]\s*\w)",
)
_CHOSEN = (
    rf"(?i:\b(?:choose|pick|select|mark|answer(?:\s+with)?)\s+(?:letter\s+|answer\s+)?{_FILLER})",
    r"(?=\W*(?:[.,;!]|$))",
)
_CORRECT = (
    r"(?i:\b(?:option|choice|answer)\s+)\(?",
    r"\)?(?i:\s+(?:is|must be|should be)\s+(?:the\s+)?(?:correct|right|true|answer|best))",
)

_EQUATION = re.compile(rf"(?P<left>[^\s=<>!]+)\s*=\s*(?P<right>{_NUMBER})")
_WORDED_RESULT = re.compile(
    rf"{_NUMBER}\s*(?:plus|minus|times|multiplied by|divided by|[-+*/×÷^])\s*{_NUMBER}\s*"
    rf"(?:is|are|equals?|makes?|gives?)\s*{_NUMBER}",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    r"""Text for comparison: one kind of minus and space, no LaTeX wrappers or dollar signs, number words as digits.

    >>> clean(r"It is $\boxed{1{,}250}$ or twenty-one")
    'It is 1,250 or 21'
    """
    text = text.replace("−", "-").replace("–", "-").replace("{,}", ",").replace("\\!", "").replace("\\,", " ")
    text = text.replace("$", "").replace("**", "").replace("\\left", "").replace("\\right", "")
    while (shorter := _LATEX_WRAPPER.sub(r"\1", text)) != text:
        text = shorter
    text = _WORDED_NUMBER.sub(lambda match: str(_worded(match.group())), text)
    return " ".join(text.split())


def _worded(words: str) -> int:
    total = part = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in SCALES:
            part = max(1, part) * SCALES[word]
            if SCALES[word] > 100:
                total, part = total + part, 0
        elif word != "and":
            part += UNITS.get(word, 0) + TENS.get(word, 0)
    return total + part


def number_of(text: str) -> Decimal | None:
    """The value of a text that is one number: "1,250", "3/4", "12.50", "twelve", "45 %"; None for any other text."""
    text = clean(text).rstrip(".").removesuffix("%").strip()
    if not _NUMBER_PATTERN.fullmatch(text):
        return None
    above, _, below = text.replace(",", "").partition("/")
    try:
        return Decimal(above) / Decimal(below) if below else Decimal(above)
    except (InvalidOperation, ZeroDivisionError):
        return None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same number, or the same text but for case and wrapping ("(B)" and "b")."""
    if (value := number_of(one)) is not None:
        return value == number_of(other)
    return clean(one).strip(" .\"'()").casefold() == clean(other).strip(" .\"'()").casefold()


def answer_leaks(answer: str, hints: Iterable[str], prompt: str) -> str | None:
    """The first hint that gives the answer away, or None.

    >>> answer_leaks("12", ["Add the two numbers."], "What is 5 + 7?")
    >>> answer_leaks("12", ["Add them.", "You should see twelve."], "What is 5 + 7?")
    'You should see twelve.'
    >>> answer_leaks("7", ["Find the 7 objects."], "How many 7s are there?")
    >>> answer_leaks("7", ["The answer is 7."], "How many 7s are there?")
    'The answer is 7.'
    >>> answer_leaks("B", ["Compare option A with option B."], "(A) red (B) blue")
    >>> answer_leaks("B", ["Choose (B)."], "(A) red (B) blue")
    'Choose (B).'
    """
    prompt = clean(prompt)
    value = number_of(answer)
    for hint in hints:
        text = clean(_STEP_NUMBER.sub("", hint))
        leaks = _number_leaks(value, text, prompt) if value is not None else _text_leaks(answer, text, prompt)
        if leaks:
            return hint
    return None


def _number_leaks(value: Decimal, hint: str, prompt: str) -> bool:
    given = any(number_of(match.group()) == value for match in _NUMBER_PATTERN.finditer(prompt))
    only_stated = given or (abs(value) < 10 and value == value.to_integral_value())
    if not only_stated:
        return any(number_of(match.group()) == value for match in _NUMBER_PATTERN.finditer(hint))
    forms = (_ANSWER_IS, _QUANTITY_IS, _DERIVED, _CHOSEN)
    return any(number_of(found) == value for found in _stated(_NUMBER, forms, hint, prompt))


def _text_leaks(answer: str, hint: str, prompt: str) -> bool:
    wanted = clean(answer).strip(" .\"'()")
    if not wanted:
        return False
    if len(wanted) == 1 and wanted.isalpha():
        # In upper case only: "a" is an article and "i" a pronoun.
        return any(_stated(rf"{wanted.upper()}\b", (_ANSWER_IS, _CHOSEN, _CORRECT), hint, prompt))
    phrase = rf"(?<!\w)(?i:{re.escape(wanted)})(?!\w)"
    if len(wanted) > 3 and wanted.casefold() not in COMMON_WORDS and not re.search(phrase, prompt):
        return re.search(phrase, hint) is not None
    # "Check whether the result is equal to ..." does not state the answer "equal".
    return any(_stated(rf"{phrase}(?!\s+(?:to|of|or)\b)", (_ANSWER_IS, _CHOSEN, _CORRECT), hint, prompt))


def _stated(answer: str, forms: Iterable[tuple[str, str]], hint: str, prompt: str) -> Iterator[str]:
    """What a hint states in one of `forms` and matches the pattern `answer`, save in an equation of the prompt."""
    for before, after in forms:
        for match in re.finditer(f"{before}(?P<answer>{answer}){after}", hint):
            left = re.search(r"\S+\s*$", hint[: match.start()])
            equation = f"{left.group() if left else ''}{match.group()}"
            if not ("=" in match.group() and left and _squeeze(equation) in _squeeze(prompt)):
                yield match.group("answer")


def executed_step(hints: Iterable[str], prompt: str) -> str | None:
    """The first hint that holds a worked-out step, an equation with a numeric result, or None.

    >>> executed_step(["Add 5 and 7."], "What is 5 + 7?")
    >>> executed_step(["5 + 7 = 12"], "What is 5 + 7?")
    '5 + 7 = 12'
    >>> executed_step(["Start from a = 3."], "a = 3; b = a + 4. What is b?")
    """
    squeezed_prompt = _squeeze(clean(prompt))
    for hint in hints:
        text = clean(_STEP_NUMBER.sub("", hint))
        if _WORDED_RESULT.search(text):
            return hint
        for match in _EQUATION.finditer(text):
            # The last word before "=" is enough to know a given equation again ("Start from a = 3").
            if _squeeze(match.group()) not in squeezed_prompt:
                return hint
    return None


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()
