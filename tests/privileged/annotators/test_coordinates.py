"""Which coordinates a model's boxes are in: as set, or as its first replies show."""

import doctest
import json

import pytest
import yaml
from annotating import KEY, configure, question_number, run, write_records
from answering import Answering, mark

from dopd_vl.common.errors import ConfigurationError, PrepareError
from privileged.annotators import coordinates
from privileged.annotators.coordinates import likeliest_coordinates
from privileged.dataset import load_privileged
from tests.commands import dopd_vl

# The pictures are 48 x 32; every box is the same quarter of its picture, said in three ways.
SAID = {"relative_1000": [500, 250, 1000, 750], "absolute": [24, 8, 48, 24], "relative_1": [0.5, 0.25, 1, 0.75]}
QUARTER = [24, 8, 48, 24]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def grounding(meant):
    return lambda part, body, seen: json.dumps([{"bbox_2d": SAID[meant], "label": mark(str(body).encode())}])


def boxes_of(result, folder):
    rows = load_privileged(result.output, cache_dir=str(folder / "hf"))
    return [box["bbox"] for row in rows for box in row["privileged"]["boxes"]]


@pytest.mark.parametrize("meant", SAID)
def test_auto_reads_what_the_first_replies_show_and_says_so(tmp_path, meant):
    path, server = write_records(tmp_path, 24, images=True), Answering(grounding(meant))
    with server.serving() as url:
        result, said = run(configure(path, tmp_path / "out", url, annotate={"parts": ["boxes"], "coordinates": "auto"}))
    assert boxes_of(result, tmp_path) == [QUARTER] * 24
    (line,) = [line for line in said.splitlines() if line.startswith("annotate.coordinates: ")]
    evidence = "20 boxes with x to {:g} and y to {:g}; within ".format(*SAID[meant][2:])
    assert line.startswith(f"annotate.coordinates: {meant}, as the first replies show ({evidence}")
    assert len(server.bodies) == 24, "what was asked to find out is not paid twice"


@pytest.mark.parametrize("meant", SAID)
def test_the_command_reads_the_coordinates_that_are_set(tmp_path, meant):
    path, server = write_records(tmp_path, 2, images=True), Answering(grounding(meant))
    with server.serving() as url:
        config = {
            "source": {"kind": "jsonl", "options": {"path": str(path)}, "default_task": "exact"},
            "output": str(tmp_path / "out"),
            "annotate": {
                "url": url, "model": "m", "key_env": None, "parts": ["boxes"], "recheck": False, "coordinates": meant
            },
        }  # fmt: skip
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = dopd_vl("prepare", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    result = load_privileged(tmp_path / "out", cache_dir=str(tmp_path / "hf"))
    assert [row["privileged"]["boxes"][0]["bbox"] for row in result] == [QUARTER] * 2


BOX = '{"bbox_2d": [500, 250, 1000, 750], "label": "LABEL"}'
SHAPES = [
    BOX,
    BOX.replace("}", ', "confidence": "high"}'),
    f"[{BOX},]",
    f"The object is here: [{BOX}]",
    f"[{BOX}] is what matters.",
    f"```json [{BOX}] ```",
    f"```json\n[{BOX}]",
    f"[{BOX}]".replace("500", '"500"').replace("750", '"750.0"'),
]
REFUSED = [f"[{BOX}, {BOX[:30]}", f"[{BOX}] or [{BOX.replace('250', '260')}]", f"[{BOX.replace('500', '500 px')}]"]


def test_the_command_reads_every_shape_of_a_box_that_can_be_meant_in_one_way_and_no_other(tmp_path):
    path = write_records(tmp_path, len(SHAPES) + len(REFUSED), images=True)

    def shaped(part, body, seen):
        text = [*SHAPES, *REFUSED][question_number(body)]
        return text.replace("LABEL", mark(str(body).encode()))

    server = Answering(shaped)
    with server.serving() as url:
        config = {
            "source": {"kind": "jsonl", "options": {"path": str(path)}, "default_task": "exact"},
            "output": str(tmp_path / "out"),
            "max_rejected_share": 1.0,
            "annotate": {"url": url, "model": "m", "key_env": None, "parts": ["boxes"], "recheck": False, "tries": 1},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = dopd_vl("prepare", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    result = load_privileged(tmp_path / "out", cache_dir=str(tmp_path / "hf"))
    assert [[box["bbox"] for box in row["privileged"]["boxes"]] for row in result] == [[QUARTER]] * len(SHAPES)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(reasons) == len(REFUSED)
    for reason, expected in zip(reasons, ["is no JSON", "holds different JSON values", "is no JSON"], strict=True):
        assert expected in reason


@pytest.mark.parametrize("setting", ["relative_1000", "absolute"])
def test_shares_are_not_taken_for_thousandths_or_pixels(tmp_path, setting):
    path, server = write_records(tmp_path, 2, images=True), Answering(grounding("relative_1"))
    annotate = {"parts": ["boxes"], "coordinates": setting, "tries": 1}
    with server.serving() as url, pytest.raises(PrepareError, match="every record was rejected"):
        run(configure(path, tmp_path / "out", url, annotate=annotate))
    entries = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(entries) == 2
    assert all("all numbers of its boxes are at most 1" in entry["reason"] for entry in entries)


def test_auto_asks_for_the_setting_where_the_replies_leave_it_open(tmp_path):
    path = write_records(tmp_path, 3, images=True)
    server = Answering(lambda part, body, seen: "[]")
    with server.serving() as url, pytest.raises(PrepareError, match=r"annotate\.coordinates: .*leave open"):
        run(configure(path, tmp_path / "out", url, annotate={"parts": ["boxes"], "coordinates": "auto"}))


def test_auto_is_decided_once_for_a_set_that_is_made_in_several_runs(tmp_path):
    """The second run begins where the first one was stopped, and reads the rest as the first one did."""
    path = write_records(tmp_path, 30, images=True)

    def half(part, body, seen):
        return 401 if len(server.bodies) > 26 else grounding("absolute")(part, body, seen)

    annotate = {"parts": ["boxes"], "coordinates": "auto", "concurrency": 1}
    server = Answering(half)
    with server.serving() as url, pytest.raises(PrepareError, match="the key is wrong"):
        run(configure(path, tmp_path / "out", url, annotate=annotate))
    server = Answering(grounding("absolute"))
    with server.serving() as url:
        result, said = run(configure(path, tmp_path / "out", url, annotate=annotate))
    assert boxes_of(result, tmp_path) == [QUARTER] * 30
    assert "annotate.coordinates: absolute, as the first replies show (20 boxes" in said


def test_a_request_that_fails_while_auto_is_decided_costs_only_its_record(tmp_path):
    path = write_records(tmp_path, 23, images=True)

    def fault(part, body, seen):
        return 400 if "Question 3:" in json.dumps(body) else grounding("absolute")(part, body, seen)

    server = Answering(fault)
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url, annotate={"parts": ["boxes"], "coordinates": "auto"}))
    assert (result.records, result.rejected) == (22, 1)


def test_parts_of_a_set_may_not_decide_each_for_itself(tmp_path):
    path = write_records(tmp_path, 1, images=True)
    annotate = {"parts": ["boxes"], "coordinates": "auto"}
    with pytest.raises(ConfigurationError, match=r"annotate\.coordinates: auto may come out differently"):
        run(configure(path, tmp_path / "out", "http://127.0.0.1:9/v1", part="1/2", annotate=annotate))
    with pytest.raises(ConfigurationError, match=r"annotate\.coordinates: 'relative' is unknown; did you mean"):
        run(configure(path, tmp_path / "out", "http://127.0.0.1:9/v1", annotate={"coordinates": "relative"}))


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([([100, 100, 1500, 900], (1920, 1080))], "absolute"),
        ([([100, 100, 900, 950], (1920, 1080))] * 12, "relative_1000"),
        ([([100, 100, 900, 950], (1000, 1000))] * 12, None),  # both are the same
        ([([100, 100, 600, 400], (640, 480))] * 2, None),  # too few to say
        ([([0, 0, 600, 400], (640, 480)), ([0, 0, 0.5, 1], (640, 480))] * 12, None),  # now one, now the other
        ([], None),
    ],
)
def test_the_smallest_frame_that_holds_the_boxes_is_the_likeliest(boxes, expected):
    assert likeliest_coordinates(boxes)[0] == expected


def test_examples_in_docstrings_hold():
    assert doctest.testmod(coordinates).failed == 0
