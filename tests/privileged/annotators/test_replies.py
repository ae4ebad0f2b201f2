"""Replies of models: the good ones are read, and no text whatever does more than be refused with a reason."""

import contextlib
import doctest
import importlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vl.common.errors import ConfigurationError, RecordError
from privileged.annotators import replies
from privileged.annotators.parts import TEXT_PARTS
from privileged.annotators.prompts import FILES, Prompt, load_prompts
from privileged.records.grounding import grounded_boxes, pixel_boxes

READERS = {
    **{part: TEXT_PARTS[part].read for part in TEXT_PARTS},
    "boxes": lambda text: grounded_boxes(text, (64, 48)),
    "pixel boxes": lambda text: pixel_boxes(text, (64, 48)),
    "check": replies.verdict,
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["hints", "hint", "caption", "verdict", "reason", "bbox_2d", "label"]), inner)
    ),
    max_leaves=12,
)
near_boxes = st.lists(
    st.fixed_dictionaries(
        {"bbox_2d": st.lists(st.integers(-50, 1050) | st.floats() | json_values, min_size=3, max_size=5)},
        optional={"label": st.text(max_size=5) | json_values},
    ),
    max_size=4,
)
wrapped = st.tuples(
    st.sampled_from(["", "<think>x</think>", "<think>", "```json\n", "Sure:\n```\n", "</think>"]),
    (json_values | near_boxes).map(json.dumps) | st.text(),
    st.sampled_from(["", "\n```", "```", "]", "\n```\nDone.", "\n```\n```\n"]),
).map("".join)


@settings(max_examples=200, deadline=None)
@given(wrapped)
def test_any_text_is_read_or_refused(text):
    for read in READERS.values():
        with contextlib.suppress(RecordError):
            json.dumps(read(text), allow_nan=False)


@settings(max_examples=80, deadline=None)
@given(near_boxes)
def test_boxes_that_are_read_lie_in_their_image(boxes):
    try:
        found = grounded_boxes(json.dumps(boxes), (64, 48))
    except RecordError:
        return
    assert len(found) == len(boxes)
    for box in found:
        x1, y1, x2, y2 = box["bbox"]
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 48


@pytest.mark.parametrize(
    "text",
    [
        '{"hints": ["A.", "B."]}',
        '```json\n{"hints": ["A.", "B."]}\n```',
        'Here you are:\n```\n{"hints": ["A.", "B."]}\n```\nGood luck!',
        '<think>{"hints": ["no"]}</think>\n{"hints": ["A.", "B."]}',
        'unopened thought</think>{"hints": ["1. A.", "2. B."]}',
    ],
)
def test_fences_thoughts_and_numbers_are_taken_off(text):
    assert replies.hint_list(text) == ["A.", "B."]


@pytest.mark.parametrize(
    ("inside", "meant"),
    [
        (r"Use \frac{1}{2} and \times.", r"Use \frac{1}{2} and \times."),
        (r"Use \\frac{1}{2} and \\times.", r"Use \frac{1}{2} and \times."),
        (r"\sqrt{2} \neq \(x\), \{y\}", r"\sqrt{2} \neq \(x\), \{y\}"),
        (r"\underline{z}, \beta\rho \notin", r"\underline{z}, \beta\rho \notin"),
        (r"One.\nNext:\ttwo \u00e9 \"three\" \/", 'One.\nNext:\ttwo \u00e9 "three" /'),
    ],
)
def test_latex_in_a_reply_is_what_the_model_meant_with_or_without_doubled_backslashes(inside, meant):
    assert replies.one_hint(f'{{"hint": "{inside}"}}') == meant


@pytest.mark.parametrize(
    ("part", "text", "reason"),
    [
        ("hints", "", "empty"),
        ("hints", "<think>still at it", "still thinking"),
        ("hints", '{"hints": ["A."]} and more', "no JSON"),
        ("hints", '{"hints": ["A."], "note": 1}', "alone"),
        ("hints", '{"hints": [""]}', "empty"),
        ("hints", '{"hints": ["See <image>."]}', "image marker"),
        ("hints", '{"hints": ["<|im_end|>"]}', "control token"),
        ("hints", '{"hints": ["A."], "hints": ["B."]}', "twice"),
        ("hints", "[" * 100_000, "no JSON"),
        ("boxes", '[{"bbox_2d": [0, 0, 2000, 10], "label": "a"}]', "leaves the image"),
        ("boxes", '[{"bbox_2d": [10, 10, 10, 20], "label": "a"}]', "no pixel"),
        ("boxes", '[{"bbox_2d": [1, 2, 3], "label": "a"}]', "4 numbers"),
        ("boxes", '[{"bbox_2d": [1, 2, NaN, 4], "label": "a"}]', "no usable number"),
        ("boxes", '[{"bbox_2d": [1, 2, 3, 4]}]', "bbox_2d and label"),
        ("check", '{"verdict": "fine"}', "neither good nor poor"),
    ],
)
def test_what_is_not_as_asked_is_refused_with_the_reason(part, text, reason):
    with pytest.raises(RecordError, match=re.escape(reason)):
        READERS[part](text)


@pytest.mark.parametrize("name", sorted(load_prompts(None)))
def test_the_worked_example_of_each_prompt_is_a_reply_that_is_read(name):
    prompt = load_prompts(None)[name]
    (example,) = re.findall(r"^Reply: (.*)$", prompt.system, re.MULTILINE)
    READERS["check" if name.startswith("check_") else name](example)
    if name.startswith("check_"):
        assert not replies.verdict(example)[0], "the example shows a poor part"


def test_a_folder_of_ones_own_replaces_single_prompts(tmp_path):
    (tmp_path / "hints.md").write_text("--- system ---\nMine.\n--- user ---\n{{question}}\n")
    prompts = load_prompts(str(tmp_path))
    assert prompts["hints"] == Prompt("Mine.", "{{question}}")
    assert len(prompts) == len(FILES)
    assert prompts["caption"] == load_prompts(None)["caption"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hint.md", "", "no prompt's name; did you mean"),
        ("hints.md", "Just text {{question}}", "must have the lines"),
        (
            "hints.md",
            "--- system ---\nx\n--- user ---\n{{qestion}}",
            "unknown place 'qestion'; did you mean 'question'",
        ),
        ("check_hints.md", "--- system ---\nx\n--- user ---\n{{question}}", "has no place {{candidate}}"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load_prompts(str(tmp_path))


@pytest.mark.parametrize("name", ["replies", "prompts", "spending", "endpoint", "detector", "parts"])
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(f"privileged.annotators.{name}")).failed == 0
