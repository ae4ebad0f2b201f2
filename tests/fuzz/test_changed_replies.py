"""Good replies with something wrong in them, and long ones that are nothing: read or refused, and soon."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vl.common.errors import RecordError
from dopd_vl.evaluation.code import program_of
from privileged.annotators import replies
from privileged.records.grounding import MAX_REPLY, grounded_boxes, pixel_boxes

READERS = {
    "hints": replies.hint_list,
    "hint": replies.one_hint,
    "caption": replies.caption,
    "check": replies.verdict,
    "boxes": lambda text: grounded_boxes(text, (64, 48)),
    "pixel boxes": lambda text: pixel_boxes(text, (64, 48)),
}
GOOD = {
    "hints": '{"hints": ["1. Use \\\\frac{1}{2}.", "2. Add."]}',
    "hint": '<think>so {"hint": 1}</think>\n{"hint": "Count."}',
    "caption": 'Here:\n```json\n{"caption": "Two \\u00e9 cups."}\n```\nDone.',
    "check": '{"verdict": "poor", "reason": "It names the answer."}',
    "boxes": '[{"bbox_2d": [10, 20, 500, 600], "label": "cup"}, {"bbox_2d": [0, 0, 1000, 1000], "label": "2"}]',
    "pixel boxes": '[{"bbox": [1.5, 2, 30, 40], "label": "cup"}]',
}
PIECES = st.text('{}[]",:\\`<>/ \n\t-.0123456789eEnul', max_size=4) | st.sampled_from(
    [
        "```",
        "<think>",
        "</think>",
        "\\u",
        "\\ud800",
        "NaN",
        "-Infinity",
        "1e999",
        "<image>",
        "<|im_end|>",
        "\x00",
        "null",
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str]:
    """A good reply of a part, with one to three pieces put in place of others."""
    part = draw(st.sampled_from(list(GOOD)))
    text = GOOD[part]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 6)))
        text = text[:start] + draw(PIECES) + text[end:]
    return part, text


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_a_good_reply_with_something_wrong_in_it_is_read_or_refused(case: tuple[str, str]) -> None:
    part, text = case
    with contextlib.suppress(RecordError):
        # What is read can be written as strict JSON in UTF-8: no NaN, no lone surrogate.
        json.dumps(READERS[part](text), allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("part", GOOD)
def test_the_replies_that_are_changed_are_good_ones(part: str) -> None:
    assert READERS[part](GOOD[part])


LONG = MAX_REPLY
RUNAWAYS = {
    "blanks after a fence": "```" + " " * (LONG - 4) + "x",
    "word after a fence": "```" + "a" * (LONG - 4) + "!",
    "back-ticks": "x" + "`" * (LONG - 1),
    "fences with blanks": ("```" + " " * 50 + "x") * (LONG // 54),
    "open fences": "x" + "```\n``a" * (LONG // 7 - 1),
    "backslashes": '{"hint": "' + "\\" * (LONG - 12) + '"}',
    "thoughts": "<think>" * (LONG // 7),
    "brackets": "[" * LONG,
    "blanks in a step": '{"hints": ["Step' + " " * 1900 + 'x"]}',
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_runaway_reply_is_judged_in_time_that_grows_with_its_length(name: str) -> None:
    began = time.process_time()
    for read in READERS.values():
        with contextlib.suppress(RecordError):
            read(RUNAWAYS[name])
    program_of(RUNAWAYS[name])
    # Some hundredths of a second; an expression that goes back over what it read would take over ten.
    assert time.process_time() - began < 2.0
