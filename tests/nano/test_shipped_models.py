"""The models that ship with the repository are ordinary folders and score as their scores.json says."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from benchmarks.nano.ladder import VISION_TASKS
from benchmarks.nano.scoring import accuracy, heldout, load
from dopd_vl.common.resources import model_folder, nano_data_folder
from dopd_vl.nano import NanoSource, text_tasks, vision_tasks
from dopd_vl.nano.models import SHAPES
from dopd_vl.nano.source import WORLDS

DOCS = Path(__file__).parents[2] / "docs" / "nano.md"
SAMPLE = 60  # of the 600 that scores.json was measured on
LEARNERS = {
    "vision-learner": ("vision", VISION_TASKS),
    "vision-guide": ("vision", VISION_TASKS),
    "text-learner": ("text", None),
    "text-guide": ("text", None),
}
NEAR = 0.13  # two standard errors of a share measured on the sample


def stated(name):
    return json.loads((model_folder(name) / "scores.json").read_text())


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_model_scores_as_stated(name):
    world = SHAPES[name].family
    model, views = load(model_folder(name))
    assert model.dtype == torch.float32
    scores = stated(name)["accuracy"]
    for variant in ("none", WORLDS[world].default_variant):
        measured = accuracy(model, views, list(heldout(world, SAMPLE)), variant)["all"]
        assert measured == pytest.approx(scores[variant]["all"], abs=NEAR)


@pytest.mark.parametrize("world", WORLDS)
def test_there_is_a_gap_to_close(world):
    teacher, student = (stated(f"{world}-{role}")["accuracy"]["none"]["all"] for role in ("teacher", "student"))
    assert 0.15 <= student <= 0.45
    assert teacher >= student + 0.3


@pytest.mark.parametrize("world", WORLDS)
def test_the_teacher_is_right_nearly_always(world):
    assert stated(f"{world}-teacher")["accuracy"]["none"]["all"] >= 0.85


@pytest.mark.parametrize("world", WORLDS)
def test_privilege_helps_the_student(world):
    scores = stated(f"{world}-student")["accuracy"]
    assert scores[WORLDS[world].default_variant]["all"] >= scores["none"]["all"] + 0.1


@pytest.mark.parametrize("world", WORLDS)
def test_teacher_and_student_share_a_vocabulary(world):
    folders = [model_folder(f"{world}-{role}") for role in ("teacher", "student")]
    configs = [AutoConfig.from_pretrained(folder).get_text_config() for folder in folders]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    assert configs[0].vocab_size == configs[1].vocab_size == len(vocabularies[0]) > 4 * 128
    assert vocabularies[0] == vocabularies[1]
    if world == "vision":
        assert AutoProcessor.from_pretrained(folders[0]).image_processor.patch_size == 8


def test_the_weights_are_small():
    weights = list((nano_data_folder() / "models").glob("*/*.safetensors"))
    assert len(weights) == len(SHAPES) + len(LEARNERS)
    assert sum(path.stat().st_size for path in weights) < 9.5e6


@pytest.mark.parametrize("name", LEARNERS)
def test_a_model_of_a_ladder_scores_as_stated_and_leans_on_its_privileged_input(name):
    world, tasks = LEARNERS[name]
    privileged = WORLDS[world].default_variant
    model, views = load(model_folder(name))
    scores = stated(name)["accuracy"]
    options = {"world": world, "split": "heldout", "size": SAMPLE, "seed": 0}
    examples = list(NanoSource(options | ({"tasks": [*tasks]} if tasks else {})))
    for variant in ("none", privileged):
        assert accuracy(model, views, examples, variant)["all"] == pytest.approx(scores[variant]["all"], abs=NEAR)
    assert scores[privileged]["all"] >= scores["none"]["all"] + 0.3
    shares = " | ".join(f"{scores[variant]['all']:.1%}" for variant in ("none", privileged))
    assert f"| {name} | {model.num_parameters():,} | {shares} | 300 |" in DOCS.read_text()


def test_an_unknown_model_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no nano model 'audio-teacher'.*vision-student"):
        model_folder("audio-teacher")


@pytest.mark.parametrize(("tasks", "table"), [(vision_tasks, "VISION_TASKS"), (text_tasks, "TEXT_TASKS")])
def test_the_documented_examples_are_the_records(tasks, table):
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (.+) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    for index, kind in enumerate(getattr(tasks, table)):
        record, response = tasks.record_and_response(index, "heldout", 0)
        question = record["prompt"][0]["content"].removeprefix("<image>")
        assert (kind, record["task"], question, response) in rows


def test_the_documented_scores_are_those_measured():
    text = DOCS.read_text()
    for name in SHAPES:
        scores = stated(name)["accuracy"]
        privileged = WORLDS[SHAPES[name].family].default_variant
        shares = " | ".join(f"{scores[variant]['all']:.1%}" for variant in ("none", privileged))
        assert f"| {name} | {stated(name)['parameters']:,} | {shares} |" in text
