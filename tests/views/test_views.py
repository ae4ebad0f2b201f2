"""Views: every one ends in the same response tokens, and batching changes nothing for any of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vl.common.errors import MissingPrivilege
from dopd_vl.views import (
    QwenVLViewProcessor,
    Request,
    TextViewProcessor,
    View,
    ViewError,
    ViewProcessor,
    processor_for,
)
from dopd_vl.views.messages import split_content
from tests.families import VISION


def example(content: str = "Add the digits.", images: int = 1, **privileged: Any) -> dict[str, Any]:
    colours = ("red", "green", "blue")
    return {
        "id": "e1",
        "prompt": [{"role": "user", "content": content}],
        "images": [Image.new("RGB", (48, 48), colours[i]) for i in range(images)],
        "answer": "8",
        "task": "number",
        "source": "test",
        "privileged": {"boxes": [{"label": "3", "bbox": [2, 2, 14, 14], "caption": None, "image": 0}], **privileged},
    }


@pytest.fixture(scope="module")
def vision(nano_models: Path) -> tuple[Any, QwenVLViewProcessor]:
    model = AutoModelForImageTextToText.from_pretrained(nano_models / "vision-student").eval()
    views = processor_for(model.config, AutoProcessor.from_pretrained(nano_models / "vision-student"))
    assert isinstance(views, QwenVLViewProcessor)
    return model, views


@pytest.fixture(scope="module")
def text(nano_models: Path) -> tuple[Any, TextViewProcessor]:
    model = AutoModelForCausalLM.from_pretrained(nano_models / "text-student").eval()
    views = processor_for(model.config, AutoProcessor.from_pretrained(nano_models / "text-student"))
    assert isinstance(views, TextViewProcessor)
    return model, views


def response_states(model: Any, views: ViewProcessor, shown: list[View], responses: list[list[int]]) -> torch.Tensor:
    """Hidden states that predict the response tokens, `[B, longest, H]`."""
    inputs = views.collate(shown, responses, views.tokenizer.pad_token_id)
    length = max(map(len, responses))
    with torch.no_grad():
        return model.base_model(**inputs, use_cache=False).last_hidden_state[:, -length - 1 : -1]


def test_text_view_is_the_chat_template_of_the_prompt(text: tuple[Any, TextViewProcessor]) -> None:
    _, views = text
    view = views.view(example("What is 3+5?", images=0))
    shown = views.tokenizer.decode(view.prompt_ids)
    assert shown == "<|im_start|>user\nWhat is 3+5?<|im_end|>\n<|im_start|>assistant\n"
    assert view.pixel_values is None


def test_vision_view_holds_one_placeholder_for_each_merged_patch(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    _, views = vision
    view = views.view(example())
    # 48 x 48 pixels, patches of 8, merged 2 x 2: a grid of 6 x 6 patches and 3 x 3 = 9 placeholders.
    assert view.image_grid_thw.tolist() == [[1, 6, 6]]
    assert view.prompt_ids.count(views.config.image_token_id) == 9
    assert view.mm_token_type_ids.count(1) == 9
    assert view.pixel_values.shape[0] == 36


def test_image_size_is_rounded_to_whole_merged_patches(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    _, views = vision
    row = example()
    row["images"] = [Image.new("RGB", (50, 41))]  # to the nearest multiples of 16: 48 and 48
    assert views.view(row).image_grid_thw.tolist() == [[1, 6, 6]]


def test_privileged_view_adds_the_boxes_and_keeps_the_image(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    _, views = vision
    plain, boxed = views.view(example()), views.view(example(), "box_label")
    assert '"bbox_2d": [42, 42, 292, 292], "label": "3"' in views.tokenizer.decode(boxed.prompt_ids)
    assert "bbox" not in views.tokenizer.decode(plain.prompt_ids)
    assert torch.equal(plain.pixel_values, boxed.pixel_values)


def test_every_view_ends_in_the_same_response_ids(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    _, views = vision
    responses = [[7, 8, 9], [10]]
    for variant in ("none", "box_label", "box_drawn", "degraded"):
        shown = [views.view(example(), variant), views.view(example("A longer question than that?"), variant)]
        batch = views.collate(shown, responses, pad_token_id=0)
        assert batch["input_ids"][:, -3:].tolist() == [[7, 8, 9], [10, 0, 0]]
        assert batch["attention_mask"][:, -3:].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert batch["attention_mask"][0].sum() == len(shown[0].prompt_ids) + 3


@pytest.mark.parametrize("family", ["qwen3_vl", *VISION])
def test_batching_views_of_differing_length_and_images_changes_no_hidden_state(
    family: str, families: Callable[[str], Path]
) -> None:
    # Left padding, mRoPE positions and image features must all find their own row, text-only rows included; nothing of
    # the padding may enter a recurrent state.
    folder = families(family) / "vision-student"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    views = processor_for(model.config, AutoProcessor.from_pretrained(folder))
    two = example("Is <image> larger than <image>?", images=2)
    shown = [
        views.view(example(), "box_label"),
        views.view(example("Text only, no picture at all.", images=0)),
        views.view(two),
        views.view(example("Short.")),
    ]
    responses = [[5, 6, 7, 8], [9, 10], [11], [12, 13, 14]]
    together = response_states(model, views, shown, responses)
    for row, (view, response) in enumerate(zip(shown, responses, strict=True)):
        alone = response_states(model, views, [view], [response])
        torch.testing.assert_close(together[row, : len(response)], alone[0], atol=2e-5, rtol=1e-4)


def test_batching_text_views_changes_no_hidden_state(text: tuple[Any, TextViewProcessor]) -> None:
    model, views = text
    shown = [views.view(example("Short.", images=0)), views.view(example("A much longer prompt than that.", images=0))]
    responses = [[5, 6, 7], [8]]
    together = response_states(model, views, shown, responses)
    for row, (view, response) in enumerate(zip(shown, responses, strict=True)):
        alone = response_states(model, views, [view], [response])
        torch.testing.assert_close(together[row, : len(response)], alone[0], atol=2e-5, rtol=1e-4)


def test_many_views_at_once_are_the_views_one_by_one(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    _, views = vision
    large = {**example("Another size."), "images": [Image.radial_gradient("L").resize((96, 64)).convert("RGB")]}
    corrupt = {**example(), "images": [{"bytes": b"\x89PNG not really", "path": None}]}
    requests = [
        Request(example(), "box_label"),
        Request(corrupt),
        Request(example("Text only, no picture at all.", images=0)),
        Request(example("Is <image> larger than <image>?", images=2), "degraded"),
        Request(example(images=0), "hints"),
        Request(large, addition="Look twice."),
    ]
    together = views.view_all(requests)
    assert isinstance(together[1], ViewError)
    assert isinstance(together[4], MissingPrivilege)
    for request, view in zip(requests, together, strict=True):
        if isinstance(view, View):
            alone = views.view(*request)
            assert view.prompt_ids == alone.prompt_ids
            assert view.mm_token_type_ids == alone.mm_token_type_ids
            if alone.pixel_values is None or alone.image_grid_thw is None:
                assert view.pixel_values is None
            else:
                torch.testing.assert_close(view.pixel_values, alone.pixel_values, rtol=0, atol=0)
                torch.testing.assert_close(view.image_grid_thw, alone.image_grid_thw)


def test_image_markers_place_the_images(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    _, views = vision
    view = views.view(example("Left: <image> right: <image>", images=2))
    assert view.image_grid_thw.shape == (2, 3)
    shown = views.tokenizer.decode(view.prompt_ids)
    assert shown.index("Left") < shown.index("<|image_pad|>") < shown.index("right")


@pytest.mark.parametrize(("markers", "images"), [(1, 2), (2, 1), (1, 0)])
def test_marker_count_must_be_the_image_count(markers: int, images: int) -> None:
    with pytest.raises(ValueError, match=rf"{markers} <image> marker\(s\) for {images} image"):
        split_content([{"role": "user", "content": "<image>" * markers}], images)


def test_text_model_refuses_images_by_the_examples_id(text: tuple[Any, TextViewProcessor]) -> None:
    with pytest.raises(ViewError, match=r"example 'e1' has 1 image\(s\), but a qwen3 model reads text only"):
        text[1].view(example())


def test_prompt_that_would_be_cut_is_refused_by_the_examples_id(nano_models: Path) -> None:
    processor = AutoProcessor.from_pretrained(nano_models / "vision-student")
    model = AutoModelForImageTextToText.from_pretrained(nano_models / "vision-student")
    views = processor_for(model.config, processor, max_prompt_length=12)
    with pytest.raises(ViewError, match=r"example 'e1': .* tokens, more than max_prompt_length=12"):
        views.view(example())


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>"])
def test_control_tokens_in_a_prompt_are_refused(vision: tuple[Any, QwenVLViewProcessor], token: str) -> None:
    with pytest.raises(ViewError, match="example 'e1': its prompt holds the control token"):
        vision[1].view(example(f"What is {token} this?"))


def test_corrupt_image_is_refused_by_the_examples_id(vision: tuple[Any, QwenVLViewProcessor]) -> None:
    row = example()
    row["images"] = [{"bytes": b"\x89PNG not really", "path": None}]
    with pytest.raises(ViewError, match="example 'e1'"):
        vision[1].view(row)


def test_missing_privilege_is_refused_by_the_examples_id(text: tuple[Any, TextViewProcessor]) -> None:
    with pytest.raises(MissingPrivilege, match="e1"):
        text[1].view(example(images=0), "hints")


def test_chat_template_kwargs_reach_every_view(nano_models: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(nano_models / "text-student")
    tokenizer = AutoProcessor.from_pretrained(nano_models / "text-student")
    tokenizer.chat_template = "{{ mood }}:{% for m in messages %}{{ m.content }}{% endfor %}"
    views = processor_for(model.config, tokenizer, chat_template_kwargs={"mood": "calm"})
    row = example("Hi", images=0, hints=["Wave."])
    for variant in ("none", "hints"):
        assert tokenizer.decode(views.view(row, variant).prompt_ids).startswith("calm:Hi")


def test_vision_model_without_its_processor_is_an_error(nano_models: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(nano_models / "vision-student")
    tokenizer = AutoProcessor.from_pretrained(nano_models / "text-student")
    with pytest.raises(ValueError, match="needs its processor"):
        processor_for(model.config, tokenizer)


@pytest.mark.parametrize("world", ["text", "vision"])
def test_messages_that_a_template_refuses_are_passed_over_alone(world: str, nano_models: Path) -> None:
    """Gemma's template, for one, raises on a system message."""
    processor = AutoProcessor.from_pretrained(nano_models / f"{world}-student")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    processor.chat_template = refusing + processor.chat_template
    views = processor_for(AutoConfig.from_pretrained(nano_models / f"{world}-student"), processor)
    fine = example(images=int(world == "vision"))
    ordered = {**fine, "id": "e2", "prompt": [{"role": "system", "content": "Be brief."}, *fine["prompt"]]}
    before, refused, after = views.view_all([Request(fine), Request(ordered), Request(fine)])
    assert isinstance(refused, ViewError)
    assert str(refused) == "example 'e2': the chat template refuses its messages (System role not supported)"
    assert isinstance(before, View)
    assert isinstance(after, View)
    assert before.prompt_ids == after.prompt_ids == views.view(fine).prompt_ids


@pytest.mark.parametrize("variant", ["none", "box_label"])
def test_content_in_parts_is_seen_as_the_same_content_with_markers(
    variant: str, vision: tuple[Any, QwenVLViewProcessor]
) -> None:
    _, views = vision
    written = example("First <image> then <image>?", images=2)
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "First "},
        {"type": "image", "text": None},  # as Arrow fills up what a part lacks
        {"type": "text", "text": " then "},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    in_parts = {**written, "prompt": [{"role": "user", "content": parts}]}
    assert views.view(in_parts, variant).prompt_ids == views.view(written, variant).prompt_ids
    video = {**written, "prompt": [{"role": "user", "content": [{"type": "video"}]}]}
    with pytest.raises(ViewError, match=r"example 'e1': prompt\[0\]\.content holds a part that is neither text nor"):
        views.view(video, variant)
