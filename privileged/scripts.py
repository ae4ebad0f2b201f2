"""Scripts of writing, to tell a label that is not in the question's language as far as its letters show it."""

from __future__ import annotations

import unicodedata

_SHARED = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"), "EAST ASIAN")


def scripts_of(text: str) -> set[str]:
    """The scripts of a text's letters, Chinese and Japanese as one.

    >>> sorted(scripts_of("OK, 東京タワー 7"))
    ['EAST ASIAN', 'LATIN']
    """
    names = (unicodedata.name(char, "").partition(" ")[0] for char in text[:2000] if char.isalpha())
    return {_SHARED.get(name, name) for name in names if name}


def other_script(label: str, question: str, answer: str) -> bool:
    """Whether a label is written in a script that neither the question nor the answer uses.

    Latin labels of other questions count only when they are words: a name, a sign or a unit (STOP, km) is Latin in
    many languages. What the letters do not show is not seen: a German label for an English question.

    >>> other_script("猫", "Where is the cat?", "left"), other_script("cat", "猫はどこ?", "左")
    (True, True)
    >>> other_script("STOP", "标志上写着什么?", "停"), other_script("出口", "What does the sign say?", "出口")
    (False, False)
    """
    found, known = scripts_of(label), scripts_of(question) | scripts_of(answer)
    if not found or not known or found & known:
        return False
    return found != {"LATIN"} or (label.islower() and sum(char.isalpha() for char in label) > 2)
