"""The local model and the detector hook, in the preparation of real pictures."""

import io
import json
import sys
from pathlib import Path

import pytest
from answering import Answering
from privileged_samples import noise, raw_record
from rich.console import Console

from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.http import retry_after
from privileged.annotators.ahead import annotation_fingerprint
from privileged.annotators.detector import DetectorGenerator, boxes_json
from privileged.annotators.parts import generation_requests
from privileged.annotators.prompts import load_prompts
from privileged.annotators.settings import AnnotateConfig, SamplingConfig
from privileged.dataset import load_privileged
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare
from privileged.records.records import parse_record

NANO = Path(__file__).parents[3] / "data" / "nano" / "models"
DETECTOR = """
import numpy as np
import supervision as sv

asked = []

def as_list(image, question):
    asked.append((image.size, question))
    return [("upper half", (0, 0, image.width, image.height / 2))]

def as_detections(image, question):
    boxes = np.array([[1, 2, 30, 20]], dtype=float)
    return sv.Detections(xyxy=boxes, data={"class_name": np.array(["blob"])})

def failing(image, question):
    raise RuntimeError("no weights")

def write(system, user, images, seed):
    asked.append((system, user, [image.size for image in images], seed))
    if "verdict" in system + user:
        return '{"verdict": "good", "reason": "it can be seen"}'
    return '{"caption": "A grey square."}'

def numbers(system, user, images, seed):
    return 7

def outside(image, question):
    return [("beyond", (500, 500, 600, 600))]
"""


@pytest.fixture
def detectors(tmp_path, monkeypatch):
    (tmp_path / "my_detectors.py").write_text(DETECTOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_detectors"
    sys.modules.pop("my_detectors", None)


def write(tmp_path, count=3):
    rows = []
    for number in range(count):
        noise(seed=number).save(tmp_path / f"{number}.png")
        rows.append({"prompt": f"What is in picture {number}?", "answer": "a heron", "images": [f"{number}.png"]})
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig("jsonl", {"path": str(tmp_path / "records.jsonl")}, default_task="exact")


def run(tmp_path, annotate):
    config = PrepareConfig(write(tmp_path), str(tmp_path / "out"), max_rejected_share=1.0, annotate=annotate)
    return prepare(config, console=Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("function", "box"),
    [("as_list", ("upper half", [0, 0, 48, 16])), ("as_detections", ("blob", [1, 2, 30, 20]))],
)
def test_a_detector_makes_the_boxes(tmp_path, detectors, function, box):
    name = f"{detectors}:{function}"
    result = run(tmp_path, AnnotateConfig(kind="detector", detector=name, parts=["boxes"]))
    for row in load_privileged(result.output, cache_dir=str(tmp_path / "hf")):
        (found,) = row["privileged"]["boxes"]
        assert (found["label"], found["bbox"]) == box
        assert row["privileged"]["provenance"] == f"boxes by {name}"
    if function == "as_list":
        import my_detectors

        assert my_detectors.asked[0] == ((48, 32), "What is in picture 0?")


@pytest.mark.parametrize(("function", "reason"), [("failing", "no weights"), ("outside", "holds no pixel")])
def test_what_a_detector_does_wrong_costs_its_record(tmp_path, detectors, function, reason):
    annotate = AnnotateConfig(kind="detector", detector=f"{detectors}:{function}", parts=["boxes"], optional=["boxes"])
    result = run(tmp_path, annotate)
    assert result.records == 3
    dropped = [json.loads(line) for line in (result.output / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == 3
    assert all(reason in drop["reason"] for drop in dropped)


def test_a_detector_beside_an_endpoint_makes_the_boxes_alone(tmp_path, detectors):
    server = Answering()
    with server.serving() as url:
        annotate = AnnotateConfig(
            url=url, model="m", key_env=None, parts=["boxes", "caption"], detector=f"{detectors}:as_list"
        )
        result = run(tmp_path, annotate)
    assert result.records == 3
    # A caption, its check, and the check of the boxes.
    assert len(server.bodies) == 9
    row = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))[0]
    assert row["privileged"]["provenance"] == f"boxes by {detectors}:as_list; caption by m"


def test_a_function_writes_what_a_model_would(tmp_path, detectors):
    result = run(tmp_path, AnnotateConfig(kind="function", model=f"{detectors}:write", parts=["caption"]))
    import my_detectors

    assert len(my_detectors.asked) == 6  # each caption, and its check
    assert all(sizes == [(48, 32)] for _, _, sizes, _ in my_detectors.asked)
    assert sum("What is in picture 0?" in user for _, user, _, _ in my_detectors.asked) == 2
    for row in load_privileged(result.output, cache_dir=str(tmp_path / "hf")):
        assert row["privileged"]["caption"] == "A grey square."
        assert row["privileged"]["provenance"] == f"caption by {detectors}:write"


def test_what_a_function_does_wrong_costs_its_part(tmp_path, detectors):
    annotate = AnnotateConfig(kind="function", model=f"{detectors}:numbers", parts=["caption"], optional=["caption"])
    result = run(tmp_path, annotate)
    dropped = [json.loads(line) for line in (result.output / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == result.records == 3
    assert all("it must give a text, not int" in drop["reason"] for drop in dropped)


@pytest.mark.parametrize(
    ("model", "reason"),
    [("annotator", "must have the form module:function"), ("nowhere_at_all:f", "nowhere_at_all:f cannot be imported")],
)
def test_a_function_that_is_not_there_is_named(tmp_path, model, reason):
    with pytest.raises(ConfigurationError, match=f"annotate.model: .*{reason}"):
        run(tmp_path, AnnotateConfig(kind="function", model=model))


def test_a_detector_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match=r"annotate.detector: nowhere_at_all:f cannot be imported"):
        DetectorGenerator("nowhere_at_all:f")
    with pytest.raises(ValueError, match="class_name"):
        boxes_json(type("Found", (), {"data": {}, "xyxy": []}))


@pytest.mark.parametrize("model", ["vision-teacher", "text-teacher"])
def test_a_local_model_replies_to_a_picture_or_a_text(tmp_path, model):
    """The nano models speak a language of digits: their replies are read, found to be no JSON, and kept as dropped."""
    import asyncio

    from privileged.annotators.local import LocalGenerator
    from privileged.annotators.requests import Request

    settings = AnnotateConfig(
        kind="local", model=str(NANO / model), dtype="float32", sampling=SamplingConfig(max_tokens=6, temperature=1.0)
    )
    images = tuple(parse_record(raw_record()).images) if model == "vision-teacher" else ()
    generator = LocalGenerator(settings)

    async def twice(seed):
        request = Request("1", "2+3", images, seed)
        return [await generator.generate(request), await generator.generate(request)]

    first, second = asyncio.run(twice(7))
    assert first == second, "the seed decides"
    assert first.prompt_tokens > 0
    assert 1 <= first.reply_tokens <= 6
    assert "text-teacher" not in model or generator.identity()["model"].startswith("text-teacher:")


def test_a_local_model_runs_in_a_preparation(tmp_path):
    annotate = AnnotateConfig(
        kind="local",
        model=str(NANO / "vision-teacher"),
        dtype="float32",
        parts=["caption"],
        optional=["caption"],
        tries=1,
        sampling=SamplingConfig(max_tokens=4),
    )
    result = run(tmp_path, annotate)
    assert result.audit["counts"]["annotated"] == {"caption asked": 3, "caption dropped: reply": 3}


def test_retry_after_may_be_a_date():
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < retry_after({"retry-after": later}) <= 60
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "-3"}) == 0.0
    assert retry_after({}) is None


def test_the_tests_of_a_coding_task_are_shown_in_part():
    tests = {"inputs": [f"{number}\n" for number in range(5000)], "outputs": ["9" * 500] * 5000}
    record = parse_record(raw_record(images=None, privileged=None, task="code", answer=json.dumps(tests)))
    (request,) = generation_requests(record, "hints", load_prompts(None), 0)
    shown = request.user.partition("Reference answer: ")[2]
    assert len(shown) < 2000
    assert shown.count("input: ") == shown.count("output: 999") == 3


def test_each_picture_is_asked_for_its_boxes_and_told_which_it_is():
    record = parse_record(raw_record(images=[noise(seed=1), noise(seed=2)], privileged=None))
    requests = generation_requests(record, "boxes", load_prompts(None), 0)
    assert [request.images for request in requests] == [(stored,) for stored in record.images]
    assert [f"image {number} of 2" in request.user for number, request in enumerate(requests, start=1)] == [True, True]
    alone = parse_record(raw_record(privileged=None))
    assert "image 1 of 1" not in generation_requests(alone, "boxes", load_prompts(None), 0)[0].user


def test_parts_that_were_made_on_different_devices_belong_together():
    prints = [
        annotation_fingerprint(AnnotateConfig(kind="local", model="m", device=device, dtype=dtype))
        for device, dtype in (("cuda:0", "auto"), ("cuda:1", "auto"), ("cuda:0", "float32"))
    ]
    assert prints[0] == prints[1] != prints[2]
