"""Each image is looked at once, and what comes of it is the same."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from dopd_vl.nano.source import NanoSource
from dopd_vl.training.vision_features import shared_vision_features
from dopd_vl.views import processor_for
from tests.families import VISION


@pytest.fixture(scope="module", params=["qwen3_vl", *VISION])
def world(request, families):
    folder = families(request.param) / "vision-student"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    views = processor_for(model.config, AutoProcessor.from_pretrained(folder))
    source = NanoSource({"world": "vision", "split": "train", "size": 4, "seed": 0})
    return model, views, [source[i] for i in range(4)]


def batch_of(views, examples, variants):
    shown = [views.view(example, variant) for example, variant in zip(examples, variants, strict=True)]
    return views.collate(shown, [[5, 6, 7]] * len(shown), views.tokenizer.pad_token_id)


def test_other_views_and_siblings_of_an_image_are_not_looked_at_again(world):
    model, views, examples = world
    siblings = [examples[0], examples[0], examples[1], examples[1]]
    plain = batch_of(views, siblings, ["none"] * 4)
    privileged = batch_of(views, siblings, ["box_label"] * 4)
    with torch.no_grad():
        expected = [model(**batch).logits for batch in (plain, privileged)]
        with shared_vision_features(model) as shared:
            found = [model(**batch).logits for batch in (plain, privileged)]
    assert [tuple(count) for count in shared.counts] == [(4, 2), (4, 0)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_changed_image_is_another_image(world):
    model, views, examples = world
    two = [examples[0], examples[0]]
    batch = batch_of(views, two, ["none", "degraded"])
    with torch.no_grad(), shared_vision_features(model) as shared:
        found = model(**batch).logits
    assert [tuple(count) for count in shared.counts] == [(2, 2)]
    with torch.no_grad():
        assert torch.equal(found, model(**batch).logits)


def test_other_weights_look_for_themselves(world):
    model, views, examples = world
    batch = batch_of(views, examples[:2], ["none"] * 2)
    with torch.no_grad(), shared_vision_features(model) as shared:
        model(**batch)
        with shared.of("average"):
            model(**batch)
            model(**batch)
        model(**batch)
    assert [count.computed for count in shared.counts] == [2, 2, 0, 0]


def test_learning_looks_for_itself(world):
    model, views, examples = world
    batch = batch_of(views, examples[:2], ["none"] * 2)
    with shared_vision_features(model) as shared:
        with torch.no_grad():
            model(**batch)
        model(**batch).logits.sum().backward()
    assert len(shared.counts) == 1
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_afterwards_the_model_is_as_it_was(world):
    model = world[0]
    before = model.model.get_image_features
    with pytest.raises(RuntimeError, match="stop"), shared_vision_features(model):
        raise RuntimeError("stop")
    assert model.model.get_image_features == before
    assert "get_image_features" not in vars(model.model)
    with shared_vision_features(torch.nn.Linear(1, 1)) as shared:
        assert shared.counts == []
