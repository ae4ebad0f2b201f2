"""The nano worlds as a source of records."""

import pytest

from dopd_vl.nano.source import NanoSource


def test_a_source_is_a_sequence_of_records_with_unique_ids():
    source = NanoSource({"world": "text", "split": "heldout", "size": 40, "seed": 2})
    assert source.name == "nano-text-heldout"
    assert len(source) == len({record["id"] for record in source}) == 40
    assert source[-1] == source[39] == source[38:][1]
    with pytest.raises(IndexError, match="no record 40"):
        source[40]


def test_tasks_narrow_the_records():
    source = NanoSource({"world": "vision", "size": 6, "tasks": ["count", "add"]})
    assert [record["source"] for record in source] == ["nano-vision/count", "nano-vision/add"] * 3


def test_the_fingerprint_follows_the_options():
    prints = {
        NanoSource(options).fingerprint()
        for options in ({}, {"seed": 1}, {"size": 5}, {"world": "text"}, {"split": "heldout"}, {"tasks": ["add"]})
    }
    assert len(prints) == 6
    assert NanoSource({"seed": 1}).fingerprint() == NanoSource({"seed": 1, "size": 1000}).fingerprint()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"wrld": "vision"}, "wrld.*did you mean 'world'"),
        ({"world": "sound"}, "world.*'sound'"),
        ({"split": "test"}, "split.*'test'"),
        ({"size": 0}, "size 0"),
        ({"size": True}, "size.*True"),
        ({"seed": "x"}, "seed.*'x'"),
        ({"tasks": ["chain"]}, "chain"),
        ({"tasks": []}, r"tasks \[\]"),
    ],
)
def test_a_wrong_option_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        NanoSource(options)
