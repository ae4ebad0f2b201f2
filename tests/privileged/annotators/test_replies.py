"""Replies of models: the good ones are read, and no text whatever does more than be refused with a reason."""

import contextlib
import doctest
import importlib
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dopd_vl.common.errors import ConfigurationError, RecordError
from privileged.annotators import replies
from privileged.annotators.parts import TEXT_PARTS
from privileged.annotators.prompts import FILES, Prompt, judge_prompt, load_prompts
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
        '{"hints": ["A.", "B."]}\nI hope that helps {you} [1].',
        'As in [2], {"hints": ["A.", "B."], "note": "two steps"}',
        '{"hints": ["A.", "B.",],}',
        '```json {"hints": ["A.", "B."]} ```',
        '```json\n{"hints": ["A.", "B."]}',
        '```\n{"hints": ["A.", "B."]}\n```\nOnce more:\n```\n{"hints": ["A.", "B."]}\n```',
    ],
)
def test_what_can_only_be_meant_in_one_way_is_read(text):
    assert replies.hint_list(text) == ["A.", "B."]


@pytest.mark.parametrize("unit", ['"\\"', '{"a": 1}', '{"', "[ ", ",}", "```json ", '{"a": "', "<think>"])
def test_long_replies_take_no_long_time(unit):
    start = time.process_time()
    for read in READERS.values():
        with contextlib.suppress(RecordError):
            read("x" + unit * (99_000 // len(unit)))
    assert time.process_time() - start < 5


def test_commas_in_a_text_stay_there():
    assert (
        replies.one_hint('{"hint": "Write [1, 2, ] and {a,}, then \\",]\\".",}')
        == 'Write [1, 2, ] and {a,}, then ",]".'
    )


@pytest.mark.parametrize(
    ("text", "coordinates", "bbox"),
    [
        ('{"bbox_2d": [250, 500, 500, 1000], "label": "a"}', "relative_1000", [16, 24, 32, 48]),
        (
            '[{"bbox_2d": ["250", "500.0", 500, "1000"], "label": "a", "score": 0.9},]',
            "relative_1000",
            [16, 24, 32, 48],
        ),
        ('[{"bbox_2d": [16, 24, 32, 48], "label": "a"}]', "absolute", [16, 24, 32, 48]),
        ('[{"bbox_2d": [0.25, 0.5, 0.5, 1.0], "label": "a"}]', "relative_1", [16, 24, 32, 48]),
        ('[{"bbox_2d": [0.25, 0.5, 0.5, 1.0], "label": "a"}]', "absolute", "at most 1"),
        ('[{"bbox_2d": [250, 500, 500, 1000], "label": "a"}]', "absolute", "in pixels"),
        ('[{"bbox_2d": [16, 24, 32, 48], "label": "a"}]', "relative_1", "as shares of its sides"),
    ],
)
def test_boxes_are_read_in_the_coordinates_that_are_set(text, coordinates, bbox):
    if isinstance(bbox, str):
        with pytest.raises(RecordError, match=bbox):
            grounded_boxes(text, (64, 48), coordinates=coordinates)
    else:
        assert [box["bbox"] for box in grounded_boxes(text, (64, 48), coordinates=coordinates)] == [bbox]


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
        ("hints", '{"note": ["A."]}', "the key 'hints'"),
        ("hints", '{"hints": ["A.", "B', "no JSON"),
        ("hints", '{"hints": ["A."]} or rather {"hints": ["B."]}', "holds different JSON values"),
        ("hints", '```json\n{"hints": ["A."]\n```', "no JSON"),
        ("hints", "See [1] and {x}.", "is no JSON"),
        ("boxes", '[{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [5, 6', "no JSON"),
        ("boxes", '[{"bbox_2d": [0.1, 0.2, 0.5, 1], "label": "a"}]', "at most 1"),
        ("boxes", '[{"bbox_2d": ["1", "2", "30 px", "40"], "label": "a"}]', "no usable number"),
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


@pytest.mark.parametrize("name", [*sorted(load_prompts(None)), "check_illusion"])
def test_the_worked_example_of_each_prompt_is_a_reply_that_is_read(name):
    prompt = judge_prompt() if name == "check_illusion" else load_prompts(None)[name]
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
