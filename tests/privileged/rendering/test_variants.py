"""The variants: what is shown, what is refused, and that an example is never touched."""

import copy
import doctest
import importlib
import json
import pkgutil

import numpy as np
import pytest
from PIL import Image
from privileged_samples import noise, raw_record

import privileged
from privileged import VARIANTS, MissingPrivilege
from privileged.records.records import parse_record

NAMES = [
    "none", "final_answer", "hints", "hints_executed", "hint_summary", "caption", "box_label", "box_caption",
    "box_only", "box_drawn", "evidence_crop", "masked_crop", "zoomed", "masked", "degraded", "half_resolution",
    "augmented", "wrong_hint", "no_prompt", "positive_feedback", "negative_feedback", "other_hints",
    "other_hints_executed", "other_box_label",
]  # fmt: skip
FREE = ("none", "no_prompt", "positive_feedback", "negative_feedback")
"""They need nothing of an example but its prompt."""
MODULES = [module.name for module in pkgutil.walk_packages(privileged.__path__, "privileged.")]


def example(**changes):
    return dict(parse_record(raw_record(**changes)).example())


def last(rendered):
    return rendered.messages[-1]["content"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_every_variant_is_there_and_described():
    assert list(VARIANTS) == NAMES
    for name, variant in VARIANTS.items():
        assert variant.name == name
        assert variant.modality in ("text", "vision", "any")
        assert variant.description


@pytest.mark.parametrize("name", NAMES)
def test_rendering_leaves_the_example_as_it_is(name):
    original = example()
    original["other"] = example(id="other")
    pixels = [np.array(image) for image in original["images"]]
    kept = copy.deepcopy({key: value for key, value in original.items() if key not in ("images", "other")})
    images = list(original["images"])
    rendered = VARIANTS[name].render(original)
    rendered.messages[0]["content"] = "changed"
    rendered.images.clear()
    assert {key: value for key, value in original.items() if key not in ("images", "other")} == kept
    assert all(a is b for a, b in zip(original["images"], images, strict=True))
    assert all(np.array_equal(np.array(a), b) for a, b in zip(original["images"], pixels, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FREE])
def test_an_example_without_the_privilege_is_refused_by_its_id(name):
    bare = {"id": "bare-1", "prompt": [{"role": "user", "content": "q"}], "images": [], "answer": "a", "privileged": {}}
    assert VARIANTS[name].missing(bare)
    with pytest.raises(MissingPrivilege, match="bare-1"):
        VARIANTS[name].render(bare)
    assert VARIANTS[name].missing({**bare, "privileged": None})


def test_privileged_text_goes_after_the_last_user_message_only():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Then?"},
    ]
    rendered = VARIANTS["hint_summary"].render(example(prompt=chat))
    assert [message["content"] for message in rendered.messages[:3]] == ["Be brief.", "First?", "One."]
    assert last(rendered) == "Then?\n\nHint: Look left."


def test_boxes_of_several_images_name_their_image_and_are_scaled_by_its_size():
    boxes = [{"label": "a", "bbox": [10, 10, 20, 20], "image": 1}, {"label": "b", "bbox": [0, 0, 24, 16], "image": 0}]
    many = example(prompt="<image> and <image>?", images=[noise(48, 32), noise(100, 50)], privileged={"boxes": boxes})
    text = last(VARIANTS["box_label"].render(many))
    # Image 2 is 100 x 50: 10/100 = 0.1, 10/50 = 0.2, 20/100 = 0.2, 20/50 = 0.4. Image 1 is 48 x 32.
    listed = json.loads(text.partition("```json\n")[2].removesuffix("\n```"))
    assert listed == [
        {"bbox_2d": [100, 200, 200, 400], "label": "a", "image": 2},
        {"bbox_2d": [0, 0, 500, 500], "label": "b", "image": 1},
    ]
    drawn = VARIANTS["box_drawn"].render(many)
    assert [image.size for image in drawn.images] == [(48, 32), (100, 50)]
    assert last(drawn).startswith("<image> and <image>?\n\nThe relevant objects are outlined in the images.")
    crop = VARIANTS["evidence_crop"].render(many)
    # The margin is a tenth of the longer side: 1 pixel around (10, 10)-(20, 20), 2.4 beyond (0, 0)-(24, 16).
    assert [image.size for image in crop.images] == [(27, 19), (12, 12)]
    assert last(crop) == "<image> and <image>?"


def test_images_without_boxes_stay_whole():
    boxes = [{"label": "a", "bbox": [10, 10, 20, 20], "image": 1}]
    many = example(images=[noise(48, 32), noise(100, 50)], privileged={"boxes": boxes})
    for name in ("evidence_crop", "box_drawn"):
        images = VARIANTS[name].render(many).images
        assert images[0] is many["images"][0]
        assert images[1] is not many["images"][1]


def test_what_cannot_be_drawn_is_written():
    whole = example(privileged={"boxes": [{"label": "all", "bbox": [0, 0, 48, 32]}]})
    rendered = VARIANTS["box_drawn"].render(whole)
    assert rendered.images[0] is whole["images"][0]
    assert last(rendered) == (
        "What is in the picture?\n\nRelevant objects that are not labelled in the picture (coordinates relative to "
        '0-1000):\n```json\n[{"bbox_2d": [0, 0, 1000, 1000], "label": "all"}]\n```'
    )


def test_the_crop_is_the_pixels_around_the_boxes():
    rendered = VARIANTS["evidence_crop"].render(example())
    # The box is (4, 4)-(20, 24), the margin 2: (2, 2)-(22, 26).
    assert np.array_equal(np.array(rendered.images[0]), np.array(noise())[2:26, 2:22])


def test_a_degraded_image_keeps_its_size_and_loses_its_detail():
    original = example(images=[noise(200, 100)])
    degraded = VARIANTS["degraded"].render({**original, "privileged": None}).images[0]
    assert degraded.size == (200, 100)
    assert np.array(degraded).std() < 0.3 * np.array(original["images"][0]).std()


def test_an_image_at_half_resolution_is_not_enlarged_again():
    halved = VARIANTS["half_resolution"].render(example(images=[noise(200, 101)])).images[0]
    assert halved.size == (100, 50)


def test_augmented_images_are_of_their_example_alone():
    def augmented(name: str):
        return VARIANTS["augmented"].render(example(id=name, images=[noise(200, 100)])).images[0]

    images = {name: augmented(name) for name in map(str, range(40))}
    assert all(np.array_equal(image, augmented(name)) for name, image in images.items())
    sizes = [image.size for image in images.values()]
    assert all(60 <= width <= 120 and 30 <= height <= 60 for width, height in sizes)
    assert len(set(sizes)) > 20
    # A grey image has the noise alone: 0.11 of 127.5 is 14 levels, on about half of the images.
    grey = [
        np.array(VARIANTS["augmented"].render(example(id=str(i), images=[Image.new("L", (200, 100), 128)])).images[0])
        for i in range(40)
    ]
    spreads = [pixels.std() for pixels in grey]
    assert all(spread < 1 or 13 < spread < 15 for spread in spreads)
    assert 10 < sum(spread > 13 for spread in spreads) < 30


def test_the_masked_image_lacks_the_boxes_and_nothing_else():
    original = example()
    masked = np.array(VARIANTS["masked"].render(original).images[0])
    expected = np.array(noise())
    expected[4:24, 4:20] = 0
    assert np.array_equal(masked, expected)


@pytest.mark.parametrize("number", range(10))
def test_the_masked_crop_is_the_crop_with_a_third_of_it_black(number: int):
    white = example(id=str(number), images=[Image.new("RGB", (300, 200), "white")])
    white["privileged"]["boxes"] = [{"label": "a", "bbox": [50, 40, 170, 140], "image": 0}]
    cropped, masked = (np.array(VARIANTS[name].render(white).images[0]) for name in ("evidence_crop", "masked_crop"))
    assert masked.shape == cropped.shape
    black = (masked == 0).all(-1)
    assert black.mean() == pytest.approx(1 / 3, abs=0.02)
    rows, columns = black.any(1).sum(), black.any(0).sum()
    assert rows * columns == black.sum()
    assert 0.45 < columns / rows < 2.2


def test_the_zoomed_crop_fills_the_image():
    # The crop is (2, 2)-(22, 26), 20 x 24; the image 48 x 32: enlarged by 32 / 24.
    assert VARIANTS["zoomed"].render(example()).images[0].size == (27, 32)


def test_another_example_is_shown_as_text_and_refused_where_it_lacks_the_part():
    other = example(id="other", prompt="<image> What is the colour?")
    shown = VARIANTS["other_hints"].render({**example(), "other": other})
    assert len(shown.images) == 1
    assert last(shown).startswith("What is in the picture?\n\nWhat follows is another problem")
    assert "What is the colour?\n\nHints:\n1. " in last(shown)
    assert "<image>" not in last(shown)
    del other["privileged"]["hints"]
    with pytest.raises(MissingPrivilege, match="of the other example, 'other': it has no hints"):
        VARIANTS["other_hints"].render({**example(), "other": other})


def test_boxes_without_labels_can_be_shown_only_where_no_label_is_needed():
    bare = example(privileged={"boxes": [{"bbox": [4, 4, 20, 24]}]})
    assert VARIANTS["box_label"].missing(bare) == "box 0 has no label"
    assert VARIANTS["box_only"].missing(bare) is None
    assert VARIANTS["box_caption"].missing(bare) == "none of its boxes has a caption"
    assert VARIANTS["box_drawn"].missing(bare) is None


def test_an_image_marker_in_privileged_text_is_refused():
    smuggled = example()
    smuggled["privileged"]["caption"] = "an <image> in a caption"
    with pytest.raises(ValueError, match="image marker"):
        VARIANTS["caption"].render(smuggled)
