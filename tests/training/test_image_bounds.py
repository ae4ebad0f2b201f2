"""Bounds on images: for every view alike, or the student's below its teacher's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from dopd_vl import DopdConfig
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.core import Source
from dopd_vl.nano.tokenizer import MERGED
from dopd_vl.objectives.common import PLAIN_STUDENT, PRIVILEGED_STUDENT, PRIVILEGED_TEACHER
from dopd_vl.planning.build import workload_of
from dopd_vl.planning.config import PlanConfig
from dopd_vl.train_config import DataSettings, ModelSettings, PrivilegeSettings
from dopd_vl.training.run import load_examples
from dopd_vl.views import View, ViewError, ViewProcessor, bounded_views, processor_for
from dopd_vl.views.rollouts import SIBLING_VIEW, ViewRenderer, render_with_rollouts
from tests.commands import dopd_vl
from tests.conftest import MakeTrainer

# A scene of the nano world is 48 x 48 pixels, 9 tokens of 256 pixels each.
WHOLE, FEWER, FEWEST = 9, 6, 2


def image_tokens(view: View) -> int:
    return (view.mm_token_type_ids or []).count(1)


@pytest.fixture
def views(nano_models: Path) -> ViewProcessor:
    folder = nano_models / "vision-student"
    return processor_for(AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder), 100)


def example(width: int = 48, height: int = 48, content: str = "What is this?") -> dict[str, Any]:
    return {
        "id": "e1",
        "prompt": [{"role": "user", "content": content}],
        "images": [Image.new("RGB", (width, height), "red")],
        "answer": "red",
        "task": "text",
        "source": "test",
        "privileged": {"caption": "All is red."},
    }


def test_the_student_sees_less_than_its_teacher_and_is_saved_and_scored_so(
    nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--model.student", nano_models / "vision-student", "--model.teacher", nano_models / "vision-teacher"]
    words += ["--data.train", vision_data, "--data.eval", vision_data, "--data.eval_size", 4, "--output_dir", run]
    words += ["--data.max_pixels", FEWER * MERGED, "--privilege.student_max_pixels", FEWEST * MERGED]
    words += ["--privilege.teacher_max_pixels", 20 * MERGED, "--training.max_completion_length", 6]
    words += ["--training.max_steps", 1, "--training.eval_steps", 1, "--training.learning_rate", 1e-2]
    done = dopd_vl("train", *words)
    assert done.returncode == 0, done.stderr
    seen = {}
    for record in read_jsonl(run / "rollouts.jsonl"):
        for view in record.get("views", []):
            (shown,) = re.findall(r"\[image: (\d+) tokens\]", view["prompt"])
            seen |= dict.fromkeys(view["sources"], int(shown))
    assert seen["teacher/privileged"] == WHOLE > FEWER
    assert FEWEST < seen["student/privileged"] <= FEWER
    assert 0 < seen["student/plain"] <= FEWEST

    saved = AutoProcessor.from_pretrained(run / "student").image_processor.size
    assert saved["longest_edge"] == FEWEST * MERGED
    scores = tmp_path / "scores"
    words = ["--model", run / "student", "--data", vision_data, "--size", 4, "--max_new_tokens", 6]
    done = dopd_vl("evaluate", *words, "--output_dir", scores)
    assert done.returncode == 0, done.stderr
    (last,) = [row for row in read_jsonl(run / "metrics.jsonl") if "eval_entropy" in row and row["step"] == 1]
    assert json.loads((scores / "scores.json").read_text())["entropy"] == pytest.approx(last["eval_entropy"], rel=1e-4)


def test_bounds_hold_for_every_view_where_no_policy_has_its_own(make_trainer: MakeTrainer, vision_data: Path) -> None:
    sources = [PLAIN_STUDENT, PRIVILEGED_TEACHER, PRIVILEGED_STUDENT, Source("start", "plain")]
    examples = list(load_examples(str(vision_data)).select(range(3)))
    for bounds, least, most in (
        ({"max_pixels": FEWER * MERGED}, 1, FEWER),
        ({"min_pixels": 12 * MERGED}, 12, 16),
        ({"min_pixels": 12 * MERGED, "max_pixels": 16 * MERGED}, 12, 16),
    ):
        for shown in make_trainer(**bounds).renderer.render(examples, sources):
            assert all(least <= image_tokens(view) <= most for view in shown.values())


def test_a_copy_sees_what_it_copies_in_the_plain_view(make_trainer: MakeTrainer, vision_data: Path) -> None:
    renderer = make_trainer(student_max_pixels=FEWEST * MERGED).renderer
    now, start, teacher = PLAIN_STUDENT, Source("start", "plain"), Source("teacher", "plain")
    (shown,) = renderer.render([load_examples(str(vision_data))[0]], [now, start, teacher])
    assert shown[now] is shown[start]
    assert image_tokens(shown[now]) <= FEWEST
    assert image_tokens(shown[teacher]) == WHOLE


def test_a_view_with_a_rollout_is_bounded_by_its_policy_and_so_is_the_plain_one_in_its_place(
    views: ViewProcessor,
) -> None:
    within = bounded_views(views, DataSettings(), PrivilegeSettings(student_max_pixels=FEWEST * MERGED))
    student = within["student"]
    renderer = ViewRenderer(student, {}, of_policies={"teacher": within["teacher"]})
    plain = [student.view(example())] * 2
    sources = [Source("teacher", SIBLING_VIEW), Source("student", SIBLING_VIEW)]
    shown, used = render_with_rollouts(
        SIBLING_VIEW, renderer, [example()] * 2, plain, ["red", "red"], [1, None], sources
    )
    assert used == [1, None]
    assert [image_tokens(view) for view in shown[sources[0]]] == [WHOLE, WHOLE]
    assert [image_tokens(view) <= FEWEST for view in shown[sources[1]]] == [True, True]
    assert shown[sources[1]][1] is plain[1]


@pytest.mark.parametrize(
    ("privilege", "key"), [({}, "data.max_pixels"), ({"teacher_max_pixels": 10**6}, "privilege.teacher_max_pixels")]
)
def test_a_prompt_too_long_for_its_images_says_which_key_helps(
    privilege: dict[str, int], key: str, views: ViewProcessor
) -> None:
    teacher = bounded_views(views, DataSettings(), PrivilegeSettings(**privilege))["teacher"]
    with pytest.raises(ViewError, match=rf"more than max_prompt_length=100; 64 of them .* a lower {key} makes smaller"):
        teacher.view(example(128, 128, content="What is this? " * 10))
    with pytest.raises(ViewError, match=r"more than max_prompt_length=100$"):
        teacher.view({**example(content="word " * 100), "images": []})


def test_an_image_of_which_a_bound_leaves_nothing_is_passed_over_by_its_id(views: ViewProcessor) -> None:
    student = bounded_views(views, DataSettings(max_pixels=MERGED), PrivilegeSettings())["student"]
    with pytest.raises(ViewError, match=r"example 'e1': an image of 1500 x 20 is too thin .*\(data\.max_pixels\)"):
        student.view(example(1500, 20))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.max_pixels", 8], "data.max_pixels: 8 is less than the model's smallest image, 256 pixels"),
        (["--privilege.copy_max_pixels", 8], "privilege.copy_max_pixels: 8 is less than"),
        (
            ["--data.min_pixels", 10**6],
            "data.min_pixels: 1000000 is more than the largest image, 16384 pixels by data.max",
        ),
        (["--data.min_pixels", 600, "--data.max_pixels", 500], "data.min_pixels=600 is more than data.max_pixels=500"),
        (
            ["--data.min_pixels", 600, "--privilege.student_max_pixels", 500],
            "data.min_pixels: 600 is more than the largest image, 500 pixels by privilege.student_max_pixels",
        ),
        (["--privilege.teacher_max_pixels", 0], "privilege.teacher_max_pixels=0 must be"),
    ],
)
def test_bounds_that_no_image_is_within_are_one_line(
    words: list[object], said: str, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    models = ["--model.student", nano_models / "vision-student", "--model.teacher", nano_models / "vision-teacher"]
    done = dopd_vl("train", *models, "--data.train", vision_data, "--output_dir", tmp_path / "run", *words)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_student_that_reads_text_has_no_bound_of_its_own(
    command: str, nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    words = ["--model.student", nano_models / "text-student", "--model.teacher", nano_models / "text-teacher"]
    words += ["--data.train", text_data, "--output_dir", tmp_path / "run", "--privilege.student_max_pixels", 4096]
    done = dopd_vl(command, *words)
    assert done.returncode == 2
    assert "privilege.student_max_pixels: bounds images, but the student reads text only" in done.stderr


def test_a_processor_of_ones_own_without_bounds_is_told_so(views: ViewProcessor) -> None:
    class Own(ViewProcessor):
        reads_images = True

        def _encode(self, messages: list[dict[str, Any]], images: list[Any]) -> View:
            return View([1])

    own = Own(views.config, views.processing_class)
    assert set(bounded_views(own, DataSettings(), PrivilegeSettings()).values()) == {own}
    with pytest.raises(UserError, match=r"data\.max_pixels: Own does not bound the images that it shows"):
        bounded_views(own, DopdConfig("x", use_cpu=True, max_pixels=4096), PrivilegeSettings())


def test_a_plan_counts_each_policys_images() -> None:
    models = ModelSettings(student="Qwen/Qwen3-VL-2B-Instruct", teacher="Qwen/Qwen3-VL-8B-Instruct")
    a_token = 32 * 32
    data = DataSettings(max_prompt_length=3000, max_pixels=1000 * a_token)
    alike = workload_of(PlanConfig(model=models, data=data))
    teacher, copy = alike.scorings
    assert (alike.prompt_tokens, alike.view_tokens(teacher), alike.image_tokens_of(teacher)) == (3000, 3000, 1000)
    privilege = PrivilegeSettings(student_max_pixels=200 * a_token, teacher_max_pixels=2000 * a_token)
    work = workload_of(PlanConfig(model=models, data=data, privilege=privilege, images=1))
    assert [work.image_tokens, *map(work.image_tokens_of, (teacher, copy))] == [200, 2000, 1000]
    # The longest prompt is the teacher's; without 1,800 and 1,000 of its image's tokens it is the others'.
    assert [work.prompt_tokens, *map(work.view_tokens, (teacher, copy))] == [1200, 3000, 2000]
    given = PlanConfig(model=models, data=data, privilege=privilege, prompt_tokens=700, image_tokens=1500)
    work = workload_of(given)
    assert [work.image_tokens, *map(work.image_tokens_of, (teacher, copy))] == [200, 1500, 1500]
    assert work.prompt_tokens == 700
