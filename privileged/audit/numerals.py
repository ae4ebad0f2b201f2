"""Numbers in text, however they are written: "1,250", "1.25e3", "2 1/2", "45 %", "two thirds", "a dozen"."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal

_UNIT_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TEN_WORDS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = {word: number for number, word in enumerate(_UNIT_WORDS)}
TENS = {word: 10 * number for number, word in enumerate(_TEN_WORDS, start=2)}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12,
}  # fmt: skip
PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {
    name: number for word, number in ORDINALS.items() if number > 2 for name in (word, f"{word}s")
}

# "twenty-one", "two hundred and five", "three million": a number as one says it, not several in a row ("seven eight"),
# and not the head of a compound ("seven-day", "twenty-fourth").
_SMALL = rf"(?:(?:{'|'.join(TENS)})(?:[\s-]+(?:{'|'.join(_UNIT_WORDS[1:10])}))?|{'|'.join(reversed(_UNIT_WORDS))})"
_SCALED = rf"(?:\s+(?:{'|'.join(SCALES)}))+"
_PART_WORDS = "|".join(sorted(PARTS, key=len, reverse=True))
_WORDED_NUMBER = re.compile(
    rf"\b{_SMALL}(?:{_SCALED}(?:(?:\s+and)?\s+{_SMALL}\b)?){{0,4}}\b(?!-(?!(?:{_PART_WORDS}|percent)\b)\w)",
    re.IGNORECASE,
)
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese and Korean, where a word or number touches what stands beside it: the
inside of a class of signs."""

SPACED = rf"[^\W{UNSPACED}]"
"""A sign of a word, of scripts that put a space between words."""

_DIGITS = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?"
NUMBER = rf"(?<!{SPACED}|[.第]){_DIGITS}(?!{SPACED}|/|[.,]\d)"
"""A number of its own: not a piece of a word, of a version (1.2.3), or of an ordinal (12th, 第12)."""

NUMBER_PATTERN = re.compile(NUMBER)
_SPACED = re.compile(r"(?<!\d )(?<![\w.,])\d{1,3}(?: \d{3})+(?! ?\d|[\w/]|[.,]\d)")
MAX_NESTING = 3
_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_PLAIN_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_UNITS_OF_MEASURE = "cm|mm|km|m|kg|mg|g|ms|s|min|h|ml|cl|l|°|€|£"
_MEASURE = rf"(?:{_UNITS_OF_MEASURE})(?:\^\{{?[23]\}}?)?"
_UNIT_OF_ANSWER = re.compile(
    rf"({_DIGITS})(?:\s*(?:[^\W\d_]{{1,20}}|{_MEASURE}(?:/{_MEASURE})?|°[CF]?|[€£])"
    r"|\s(?:[^\W\d_]{1,10}\.?/[^\W\d_]{1,10}))\.?"
)

# What one substitution each rewrites; in this order.
_REWRITES = [
    (re.compile("[\u00ad\u200b\u200c\u200d\ufeff]"), ""),
    (re.compile("[−–]"), "-"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|_|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[!;:]|\$|\*\*|\\(?:left|right)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[, ]"), " "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=\d)(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"), r"\1\2/\3\4"),
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0."),
    (re.compile(rf"(?<=\d)(?=(?:{_UNITS_OF_MEASURE})(?![\w/]))"), " "),
]
_SCIENTIFIC = re.compile(
    r"(?<![\w.])(-?\d{1,20}(?:\.\d{1,20})?)(?:\s?(?:\\times|\\cdot|×|·|\*|x)\s?10\s?\^\s?\{?(-?\d{1,2})\}?|[eE]([+-]?\d{1,2}))(?![\w.]\d|\w)"
)
_MIXED = re.compile(r"(?<![\w./])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\w/])")
_AND_A_HALF = re.compile(r"(?<![\w./,])(\d{1,9}) and (?:a|1) (half|third|quarter)\b", re.IGNORECASE)
_MINUS = re.compile(r"(?<![\d)] )(?<!\b\w )\b(?:minus|negative)\s+(?=\d)", re.IGNORECASE)
_DOZEN = re.compile(r"\b(half an?|an?|\d{1,3}) dozen\b", re.IGNORECASE)
_A_SCALE = re.compile(rf"\ban? ({'|'.join(SCALES)})\b(?! (?:times|of)\b)", re.IGNORECASE)
_SHARE = re.compile(rf"(?<![\w./,])(\d{{1,3}})[ -]({_PART_WORDS})\b", re.IGNORECASE)
_PERCENT = re.compile(r"(?<=\d)[\s-]?(?:%|percent\b|per cent\b)", re.IGNORECASE)
_LOOSE_SHARE = re.compile(rf"\b(?:(?:an?|1)[ -](?:{_PART_WORDS})|half)\b", re.IGNORECASE)
_LOOSE_ORDINAL = re.compile(
    rf"\b(?:{'|'.join(ORDINALS)}|(\d{{1,3}})(?:st|nd|rd|th))\b(?=\W*(?:[.;!]|$))", re.IGNORECASE
)


@functools.lru_cache(maxsize=256)  # a record's texts are compared with one another again and again
def clean(text: str) -> str:
    r"""Text for comparison: one kind of minus and space, no LaTeX wrappers or dollar signs, numbers in digits.

    >>> clean(r"It is $\boxed{1{,}250}$ or twenty-one")
    'It is 1,250 or 21'
    >>> clean(r"2\frac{1}{2}, 3 \times 10^{5}, two thirds, half a dozen, 45 percent")
    '5/2, 300000, 2/3, 6, 45%'
    """
    text = _SUPERSCRIPT.sub(lambda match: "^" + match.group().translate(_PLAIN_DIGITS), text)
    text = re.sub(r"(?<=\d)(?=[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", " ", text)
    for pattern, replacement in _REWRITES[:3]:  # before NFKC makes all spaces alike
        text = pattern.sub(replacement, text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    for pattern, replacement in _REWRITES[3:]:
        text = pattern.sub(replacement, text)
    for _ in range(MAX_NESTING):
        text = _WRAPPER.sub(r"\1", text)
    text = " ".join(text.split())
    text = _A_SCALE.sub(lambda match: str(SCALES[match.group(1).lower()]), text)
    text = _WORDED_NUMBER.sub(lambda match: str(_worded(match.group())), text)
    text = _SCIENTIFIC.sub(_plain, text)
    text = _MIXED.sub(_improper, text)
    text = _AND_A_HALF.sub(lambda match: _and_part(int(match.group(1)), match.group(2)), text)
    text = _MINUS.sub("-", text)
    text = _DOZEN.sub(lambda match: str(_dozens(match.group(1))), text)
    text = _SHARE.sub(_share, text)
    return _PERCENT.sub("%", text)


def loosely(text: str) -> str:
    """Cleaned text with words as numbers that have other senses too ("half", "a third", "the third"): good only where
    an answer is stated.

    >>> loosely("the answer is a quarter"), loosely("the answer is the third")
    ('the answer is 1/4', 'the answer is the 3')
    """
    text = _LOOSE_SHARE.sub(lambda match: f"1/{PARTS[re.split('[ -]', match.group().lower())[-1]]}", text)
    return _LOOSE_ORDINAL.sub(lambda match: match.group(1) or str(ORDINALS[match.group().lower()]), text)


def number_of(text: str) -> Decimal | None:
    """The value of a text that is one number: "1,250", "3/4", "12.50", "twelve", "45 %"; None for any other text."""
    text = clean(text).rstrip(".").removesuffix("%").strip()
    return value_of(text) if NUMBER_PATTERN.fullmatch(text) else None


def answer_values(answer: str) -> set[Decimal]:
    """The values that give an answer away, if it is a number, alone or with a unit: 45 % is 45 and 0.45.

    >>> sorted(map(str, answer_values("45 %"))), sorted(map(str, answer_values("12 cm"))), answer_values("a dog")
    (['0.45', '45'], ['12'], set())
    """
    text = clean(answer).rstrip(".").strip()
    if (unit := _UNIT_OF_ANSWER.fullmatch(text)) is not None:
        text = unit.group(1)
    value = number_of(text)
    if value is None:
        return set()
    return {value, value / 100} if text.endswith("%") else {value}


def value_of(number: str) -> Decimal | None:
    """The value of what `NUMBER` matches; None for a division by zero or beyond any use."""
    above, _, below = number.replace(",", "").replace(" ", "").partition("/")
    try:
        return Decimal(above) / Decimal(below) if below else Decimal(above)
    except ArithmeticError:
        return None


def values_in(text: str) -> set[Decimal]:
    """Every number of a cleaned text; "75%" is 75 and 0.75, "1 250" is 1, 250 and 1250."""
    return set(_values_in(text))


def _values_in(text: str) -> Iterator[Decimal]:
    for match in NUMBER_PATTERN.finditer(text):
        value = value_of(match.group())
        if value is not None:
            yield value
            if text[match.end() : match.end() + 1] == "%":
                yield value / 100
    for match in _SPACED.finditer(text):
        yield Decimal(match.group().replace(" ", ""))


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


def _plain(match: re.Match[str]) -> str:
    return format(Decimal(match.group(1)).scaleb(int(match.group(2) or match.group(3))).normalize(), "f")


def _improper(match: re.Match[str]) -> str:
    whole, above, below = (int(part) for part in match.groups())
    return f"{whole * below + above}/{below}" if above < below else match.group()


def _and_part(whole: int, part: str) -> str:
    below = PARTS[part.lower()]
    return f"{whole * below + 1}/{below}"


def _dozens(count: str) -> int:
    if count.isdigit():
        return 12 * int(count)
    return 6 if count.lower().startswith("half") else 12


def _share(match: re.Match[str]) -> str:
    above, below = int(match.group(1)), PARTS[match.group(2).lower()]
    # "One half" is kept for `loosely`, and "2 third" is no share.
    return f"{above}/{below}" if above > 1 and match.group(2).lower().endswith("s") else match.group()
