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
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

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

LONG_ANSWER = 200

# "twenty-one", "two hundred and five", "three million": a number as one says it, not several in a row ("seven eight").
_SMALL = rf"(?:(?:{'|'.join(TENS)})(?:[\s-]+(?:{'|'.join(_UNIT_WORDS[1:10])}))?|{'|'.join(reversed(_UNIT_WORDS))})"
_SCALED = rf"(?:\s+(?:{'|'.join(SCALES)}))+"
_WORDED_NUMBER = re.compile(rf"\b{_SMALL}(?:{_SCALED}(?:(?:\s+and)?\s+{_SMALL}\b)?){{0,4}}\b", re.IGNORECASE)
# A number of its own: not a piece of a word, of a version (1.2.3), or of an ordinal (12th).
_NUMBER = r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?![\w/]|[.,]\d)"
_NUMBER_PATTERN = re.compile(_NUMBER)
_STEP_NUMBER = re.compile(r"^\s*(?:step\s*\d+\s*[:.)-]?|\(?\d+[.):](?=\s))\s*", re.IGNORECASE)
MAX_NESTING = 3
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

# Of the left side the last word, cut to a length that keeps the search linear.
_EQUATION = re.compile(rf"[^\s=<>!]{{1,40}}\s?=\s?{_NUMBER}")
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
    for _ in range(MAX_NESTING):
        text = _LATEX_WRAPPER.sub(r"\1", text)
    text = " ".join(text.split())
    return _WORDED_NUMBER.sub(lambda match: str(_worded(match.group())), text)


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
    return _value(text) if _NUMBER_PATTERN.fullmatch(text) else None


def _value(number: str) -> Decimal | None:
    """The value of what `_NUMBER` matches; None for a division by zero or beyond any use."""
    above, _, below = number.replace(",", "").partition("/")
    try:
        return Decimal(above) / Decimal(below) if below else Decimal(above)
    except ArithmeticError:
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
    leaks = _number_check(number_of(answer), prompt) or _text_check(answer, prompt)
    return next((hint for hint in hints if leaks(clean(_STEP_NUMBER.sub("", hint)))), None)


Check = Callable[[str], bool]


def _number_check(answer: Decimal | None, prompt: str) -> Check | None:
    """A check of one hint for a number; None when the answer is none."""
    if answer is None:
        return None
    if answer in _values(prompt) or (abs(answer) < 10 and answer == answer.to_integral_value()):
        stated = _stated(_NUMBER, (_ANSWER_IS, _QUANTITY_IS, _DERIVED, _CHOSEN), prompt)
        return lambda hint: any(_value(found) == answer for found in stated(hint))
    return lambda hint: answer in _values(hint)


def _values(text: str) -> set[Decimal | None]:
    return {_value(match.group()) for match in _NUMBER_PATTERN.finditer(text)}


def _text_check(answer: str, prompt: str) -> Check:
    wanted = clean(answer).strip(" .\"'()")
    if not wanted:
        return lambda hint: False
    forms = (_ANSWER_IS, _CHOSEN, _CORRECT)
    if len(wanted) == 1 and wanted.isalpha():
        # In upper case only: "a" is an article and "i" a pronoun.
        stated = _stated(rf"{re.escape(wanted.upper())}\b", forms, prompt)
        return lambda hint: any(stated(hint))
    if len(wanted) > LONG_ANSWER:  # the words around it matter no more, and a pattern of it would be slow to build
        return lambda hint: wanted.casefold() in hint.casefold()
    phrase = re.compile(rf"(?<!\w)(?i:{re.escape(wanted)})(?!\w)")
    if len(wanted) > 3 and wanted.casefold() not in COMMON_WORDS and not phrase.search(prompt):
        return lambda hint: phrase.search(hint) is not None
    # "Check whether the result is equal to ..." does not state the answer "equal".
    stated = _stated(rf"{phrase.pattern}(?!\s+(?:to|of|or)\b)", forms, prompt)
    return lambda hint: any(stated(hint))


def _stated(answer: str, forms: Iterable[tuple[str, str]], prompt: str) -> Callable[[str], Iterator[str]]:
    """Finds what a hint states in one of `forms` and matches `answer`, save in an equation that the prompt holds."""
    patterns = [re.compile(f"{before}(?P<answer>{answer}){after}") for before, after in forms]
    squeezed_prompt = _squeeze(prompt)

    def find(hint: str) -> Iterator[str]:
        for pattern in patterns:
            for match in pattern.finditer(hint):
                left = hint[max(0, match.start() - 40) : match.start()].split()
                given = "=" in match.group() and left and _squeeze(left[-1] + match.group()) in squeezed_prompt
                if not given:
                    yield match.group("answer")

    return find


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
