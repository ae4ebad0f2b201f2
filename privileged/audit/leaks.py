"""Does a hint give away what it must not: the answer, or a step already worked out?

The checks keep false alarms low at the price of some misses, since a hint that is set aside wrongly is lost:

- A number of two or more digits leaks when it stands in a hint as a number of its own, however it is written ("1,250",
  "1.25e3", "75 %" for 3/4, "two thirds", "a dozen"), unless the prompt holds it too, alone or as a part of a fraction:
  then it may be a given quantity.
- An expression of more than three signs leaks wherever it stands as a whole, compared after normalisation.
- A number of one digit, one that the prompt holds, a short expression, an option letter, an option's text, a common
  word (yes, left) or a word that the prompt offers leaks only when it is stated: "the answer is 7", "= 7", "which gives
  7", "choose (B)", "B is correct". There "half" is 1/2 and "the third" is 3.
- An equation that the prompt holds is restated, not leaked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

from privileged.audit.expressions import expression_pattern, is_expression, is_telling, normalised
from privileged.audit.numerals import (
    NUMBER,
    ORDINALS,
    SPACED,
    UNSPACED,
    answer_values,
    clean,
    loosely,
    number_of,
    value_of,
    values_in,
)

__all__ = ["answer_leaks", "clean", "executed_step", "number_of", "same_answer"]

COMMON_WORDS = {
    "yes", "no", "true", "false", "left", "right", "above", "below", "equal", "same", "none", "both", "more", "less",
    "up", "down", "even", "odd", "last", "top", "bottom", "middle", "before", "after", *ORDINALS,
    "正确", "错误", "不是", "没有", "左边", "右边", "はい", "いいえ", "正しい", "아니오", "아니요", "맞다", "틀리다",
    "ใช่", "ไม่ใช่", "ถูก", "ผิด",
    "nein", "wahr", "falsch", "vrai", "faux", "verdadero", "falso",
}  # fmt: skip
"""Answers that hints use in other senses."""

LONG_ANSWER = 200

_STEP_NUMBER = re.compile(r"^\s*(?:step\s*\d+\s*[:.)-]?|\(?\d+[.):](?=\s))\s*", re.IGNORECASE)

# How an answer is stated. Each is a prefix, the answer, and what must follow; words in any case, the answer as it is.
_IS = r"\s*(?:(?:is|was|equals|must be|should be|will be|comes to|becomes|would be)\s*:?|[:=])\s*"
_FILLER = r"(?:exactly\s+|simply\s+|therefore\s+|option\s+|choice\s+|equal to\s+|an?\s+(?=1/)|the\s+)*[\"'(]*"
_END = r"(?=\W*(?:[.,;!]|$))"
_NO_MORE = r"(?!\s?[-+*/×÷^]\s?\w|\s+(?:times|or)\b)"
_ANSWER_IS = (
    rf"(?i:\b(?:answer|result|solution|(?:correct|right)\s+(?:option|choice|letter)){_IS}{_FILLER})",
    r"(?!\s+(?:times|or)\b)",
)
_QUANTITIES = (
    "total|sum|difference|product|quotient|remainder|count|value|number|probability|chance|share|slope|area|length"
    "|period|range|mean|average|median|root|limit|volume|cosine|sine|tangent"
)
_QUANTITY_IS = (rf"(?i:\b(?:{_QUANTITIES}){_IS}{_FILLER})", _NO_MORE)
_DERIVED = (
    r"(?i:=\s*|\b(?:equals|is equal to|gives?|giving|yields?|gets?|finds?|obtains?|makes|making|leaves|leaving)\s+"
    r"(?:you\s+|us\s+|a\s+total\s+of\s+|exactly\s+|the\s+(?:answer|result|value|number)\s+)*)",
    r"(?!\s*[-+*/×÷^]\s*\w|\s+(?:times|or)\b)",
)
_CHOSEN = (
    rf"(?i:\b(?:choose|pick|select|mark|answer(?:\s+with)?)\s+(?:[a-j]:\s+|letter\s+|answer\s+)?{_FILLER})",
    _END,
)
_CORRECT = (
    r"(?i:(?<!if )(?<!whether )(?<!if the )(?<!whether the )(?:\b(?:option|choice|answer)\s+)?\(?)\b",
    r"\)?(?i:\s+(?:is|must be|should be)\s+(?:the\s+)?(?:correct|right|best)\b|\s+is\s+the\s+answer\b)",
)
_IT_IS = (r"(?i:\b(?:it|this|that)\s+(?:is|must be|has to be|can only be)\s+(?:the\s+)?)[\"'(]*", _END)
_IT_MUST_BE = (r"(?i:\b(?:it|this|that|[a-z])\s+(?:must be|has to be|can only be)\s+(?:the\s+)?)[\"'(]*", _END)
_THERE_ARE = (
    r"(?i:\bthere\s+(?:are|is|will be)\s+(?:only\s+|exactly\s+)?)",
    r"(?i:(?=(?:\s+of\s+them)?(?:\s+left)?\s*(?:[.,;!]|$)))",
)
_ONLY = (r"(?i:\b(?:only|exactly)\s+)", r"(?i:(?=\s+(?:remains?|(?:are\s+|is\s+)?left)\b))")
_VERDICT = (
    r"(?i:^[\"'(]*|(?<!if the )(?<!whether the )\b(?:statement|claim|sentence)\s+is\s+)",
    r"(?=\s*(?:[,.;:!]|$))",
)
_ANNOUNCED = (
    "答案|正解|答え|정답|คำตอบ|antwort|lösung|respuesta|réponse|ответ|resposta|risposta|cevap|đáp án|उत्तर|الإجابة"
)
_IN_OTHER_WORDS = (
    rf"(?i:(?:{unicodedata.normalize('NFKC', _ANNOUNCED)})"  # as `clean` writes what it is compared with
    r"\s?(?:是|为|為|は|은|는|คือ|lautet|ist|es|est|é|è|là)?\s*:?\s*)[\"'(「“]*",
    "",
)
"""How the answer is announced in other languages."""
_SO = (r"(?i:\b(?:so|thus|hence|therefore),?\s+)[\"'(]*", r"(?=[\"')]*\s*(?:[.;!]|$))")
_IN_ALL = ("", r"(?i:\s+(?:\w+\s+)?in\s+(?:all|total)\b)")

# Of the left side the last word, cut to a length that keeps the search linear.
_EQUATION = re.compile(rf"[^\s=<>!]{{1,40}}\s?=\s?{NUMBER}")
_ASSUMPTION = re.compile(
    r"\b(?:let|set|try|if|when|for|suppose|assume|with|take|say|put|where|at|choose|from)\s+$", re.IGNORECASE
)
_NAME = re.compile(r"[^\W\d]\w{0,3}\s?=")
_WORDED_RESULT = re.compile(
    rf"{NUMBER}\s*(?:plus|minus|times|multiplied by|divided by|[-+*/×÷^])\s*{NUMBER}\s*"
    rf"(?:is|are|equals?|makes?|gives?)\s*{NUMBER}",
    re.IGNORECASE,
)
_QUANTITY_RESULT = re.compile(
    rf"\b(?:sum|product|difference|quotient|total|remainder)\b[^.=?<>]{{0,60}}?\b(?:is|equals|comes to)\s+"
    rf"(?P<result>{NUMBER})(?!\s+(?:more|less|times|digits?|or|to)\b|-)",
    re.IGNORECASE,
)

# A letter at the start of a line or after a space, closed by ")" or ".", and text up to the next one or the line's end.
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-J])[).:]\s+(\S[^\n]{0,300}?)(?=\s+\(?[A-J][).:]\s|\s*$)", re.MULTILINE)

Check = Callable[[str], bool]


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
    >>> answer_leaks("B", ["The answer is blue."], "(A) red (B) blue")
    'The answer is blue.'
    """
    hints = list(hints)
    if not hints:
        return None
    checks = [_answer_check(form, clean(prompt)) for form in (answer, *_other_forms(answer, prompt))]
    for hint in hints:
        text = clean(_STEP_NUMBER.sub("", hint))
        if any(leaks(text) for leaks in checks):
            return hint
    return None


def _other_forms(answer: str, prompt: str) -> Iterator[str]:
    """What else says the same: the text of an option for its letter, its letter for the text; 5 for "x = 5"."""
    options = listed_options(prompt)
    letter = answer.strip(" .()").upper()
    if letter in options:
        yield options[letter]
    elif options and sum(same_answer(answer, text) for text in options.values()) == 1:
        yield next(letter for letter, text in options.items() if same_answer(answer, text))
    if equation := re.fullmatch(r"[a-zA-Z]\w{0,3}\s?=\s?([^=]+)", answer.strip(" $")):
        yield equation.group(1)


def _answer_check(answer: str, prompt: str) -> Check:
    """A check of one hint; hint and prompt are cleaned."""
    if values := answer_values(answer):
        numeric, verbatim = _number_check(values, prompt), None
        if number_of(answer) is None:  # a number with its unit, which tells more than the number alone
            verbatim = _text_check(clean(answer).strip(" .\"'()"), prompt)
        return lambda hint: numeric(hint) or (verbatim is not None and verbatim(hint))
    expression = normalised(clean(answer).strip(" ."))
    if is_expression(expression):
        return _expression_check(expression, normalised(prompt))
    return _text_check(clean(answer).strip(" .\"'()"), prompt)


def _number_check(values: set[Decimal], prompt: str) -> Check:
    plain = all(abs(value) < 10 and value == value.to_integral_value() for value in values)
    # Who reads "33 / 4 pounds" has 33 and 4 to work with, too.
    given = bool(values & (values_in(prompt) | values_in(prompt.replace("/", " : "))))
    forms = [_ANSWER_IS, _IN_OTHER_WORDS, _QUANTITY_IS, _DERIVED, _CHOSEN]
    forms += [] if given else [_IT_IS, _IT_MUST_BE, _THERE_ARE, _ONLY, _IN_ALL, _SO]
    find = _stated(rf"{NUMBER}%?", forms, prompt)

    def stated(hint: str) -> bool:
        return any(values & values_in(found) for text in {hint, loosely(hint)} for found in find(text))

    if given or plain:
        return stated
    return lambda hint: bool(values & values_in(hint)) or stated(hint)


def _expression_check(expression: str, prompt: str) -> Check:
    pattern = expression_pattern(expression)
    anywhere = re.compile(pattern)
    if is_telling(expression) and not anywhere.search(prompt):
        return lambda hint: anywhere.search(normalised(hint)) is not None
    find = _stated(pattern, (_ANSWER_IS, _QUANTITY_IS, _DERIVED, _CHOSEN, _IT_IS, _SO), prompt)
    return lambda hint: any(find(normalised(hint)))


def _text_check(wanted: str, prompt: str) -> Check:
    if not wanted:
        return lambda hint: False
    forms: tuple[tuple[str, str], ...] = (_ANSWER_IS, _IN_OTHER_WORDS, _CHOSEN, _CORRECT, _IT_MUST_BE, _SO)
    if wanted.casefold() in ("yes", "no", "true", "false"):
        forms += (_VERDICT,)
    if len(wanted) == 1 and wanted.isalpha():
        # In upper case only: "a" is an article and "i" a pronoun.
        stated = _stated(rf"{re.escape(wanted.upper())}\b", forms, prompt)
        return lambda hint: any(stated(hint))
    if len(wanted) > LONG_ANSWER:  # the words around it matter no more, and a pattern of it would be slow to build
        return lambda hint: wanted.casefold() in hint.casefold()
    bare = re.sub(r"^(?:the|an?|eine?|der|die|das|une?|una|le|la|el)\s+(?=\w)", "", wanted, flags=re.IGNORECASE)
    words = r"[\s-]+".join(re.escape(word) for word in re.split(r"[\s-]+", bare) if word) or re.escape(bare)
    # Where words touch their neighbours, the answer has no border of its own.
    unspaced = [re.match(f"[{UNSPACED}]", sign) is not None for sign in (bare[0], bare[-1])]
    before, after = "" if unspaced[0] else f"(?<!{SPACED})", "" if unspaced[1] else f"(?!{SPACED})"
    phrase = re.compile(f"{before}(?i:{words}){after}")
    # Two characters are a word in Chinese, and a sign or digit makes a short answer (3:2, C++) a rare one.
    is_long = len(bare) > (1 if all(unspaced) else 3) or (len(bare) > 1 and re.search(r"[^\w\s]|\d", bare) is not None)
    if is_long and bare.casefold() not in COMMON_WORDS and not phrase.search(prompt):
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
    >>> executed_step(["Start from a = 3.", "Let x = 2."], "a = 3; b = a + 4. What is b?")
    """
    prompt = clean(prompt)
    squeezed_prompt, given = _squeeze(prompt), values_in(prompt)
    for hint in hints:
        text = clean(_STEP_NUMBER.sub("", hint))
        if _WORDED_RESULT.search(text):
            return hint
        if any(value_of(match.group("result")) not in given for match in _QUANTITY_RESULT.finditer(text)):
            return hint
        for match in _EQUATION.finditer(text):
            # "Let x = 2" supposes; it works nothing out.
            supposed = _NAME.match(match.group()) and _ASSUMPTION.search(
                text[max(0, match.start() - 20) : match.start()]
            )
            # The last word before "=" is enough to know a given equation again ("Start from a = 3").
            if not supposed and _squeeze(match.group()) not in squeezed_prompt:
                return hint
    return None


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


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
