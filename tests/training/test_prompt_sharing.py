"""Siblings that share the reading of their prompt have the hidden states and gradients of ordinary forward passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.models import backbone_of
from dopd_vl.nano.source import NanoSource
from dopd_vl.objectives import Dopd
from dopd_vl.training.prompt_sharing import hidden_states_from_shared_prompts, prompts_of
from dopd_vl.training.run import load_examples
from dopd_vl.views import View, ViewProcessor, processor_for
from dopd_vl.views.rollouts import pad_responses

RESPONSES = [[7, 8, 9, 10], [5], [6, 6], [11, 12, 13], [14, 15, 16], [9, 8]]


@pytest.fixture(scope="module")
def vision(nano_models: Path) -> tuple[Any, ViewProcessor]:
    folder = nano_models / "vision-student"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, processor_for(model.config, AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def text(nano_models: Path) -> tuple[Any, ViewProcessor]:
    folder = nano_models / "text-student"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, processor_for(model.config, AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def mixture(families: Callable[[str], Path]) -> tuple[Any, ViewProcessor]:
    folder = families("qwen3_vl_moe") / "vision-student"
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, processor_for(model.config, AutoProcessor.from_pretrained(folder))


def views_of(views: ViewProcessor, world: str, pictures: bool = True) -> list[View]:
    """Three prompts of unlike length, two of which have siblings; the siblings are not all neighbours."""
    source = NanoSource({"world": "text" if world == "text" else "vision", "size": 3, "seed": 0})
    examples = [source[i] for i in range(3)]
    if not pictures:
        bare = [{"role": "user", "content": "Nothing to look at."}]
        examples = [{**e, "images": [], "prompt": bare} for e in examples]
    boxed = "hints" if world == "text" or not pictures else "box_label"
    a, b, c = views.view(examples[0]), views.view(examples[1], boxed if pictures else "none"), views.view(examples[2])
    return [a, a, b, c, a, b]


def ordinary(model: Any, views: ViewProcessor, shown: list[View]) -> Tensor:
    inputs = views.collate(shown, RESPONSES, views.tokenizer.pad_token_id)
    longest = max(map(len, RESPONSES))
    return model.base_model(**inputs, use_cache=False).last_hidden_state[:, -longest - 1 : -1]


def sharing(model: Any, views: ViewProcessor, shown: list[View]) -> Tensor:
    different, rows = prompts_of(shown)
    assert len(different) == 3
    prompts = views.collate(different, [[] for _ in different], views.tokenizer.pad_token_id)
    ids, mask = pad_responses(RESPONSES, views.tokenizer.pad_token_id)
    return hidden_states_from_shared_prompts(backbone_of(model), prompts, torch.tensor(rows), ids, mask)


@pytest.mark.parametrize("world", ["vision", "text", "mixture"])
def test_hidden_states_and_gradients_are_those_of_ordinary_passes(world: str, request: pytest.FixtureRequest) -> None:
    model, views = request.getfixturevalue(world)
    shown = views_of(views, world)
    mask = pad_responses(RESPONSES, 0)[1]
    direction = torch.randn(*mask.shape, model.config.get_text_config().hidden_size)
    results = []
    for way in (ordinary, sharing):
        model.zero_grad()
        hidden = way(model, views, shown)
        (hidden * direction)[mask].sum().backward()
        results.append(
            (hidden.detach()[mask], {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})
        )
    (expected, expected_gradients), (found, gradients) = results
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, expected_gradients[name], atol=2e-5 * max(scale, 1), rtol=1e-3, msg=name)


@torch.no_grad()
def test_a_batch_without_images_after_one_with_images_has_its_own_positions(vision: tuple[Any, ViewProcessor]) -> None:
    model, views = vision
    sharing(model, views, views_of(views, "vision"))
    shown = views_of(views, "vision", pictures=False)
    model.model.rope_deltas = None
    expected = ordinary(model, views, shown)
    model.model.rope_deltas = torch.full((3, 1), 17)  # what an earlier batch left
    mask = pad_responses(RESPONSES, 0)[1]
    torch.testing.assert_close(sharing(model, views, shown)[mask], expected[mask], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("world", ["vision", "text"])
def test_a_step_that_shares_prompts_is_the_step_that_does_not(
    world: str, nano_models: Path, vision_data: Path, text_data: Path, tmp_path: Path
) -> None:
    logs, weights = [], []
    for shares in (True, False):
        args = DopdConfig(
            str(tmp_path / str(shares)), max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            num_generations=4, scoring_batch_size=3, max_completion_length=6, learning_rate=1e-3, logging_steps=1,
            save_strategy="no", use_cpu=True, report_to="none", gradient_checkpointing=False, disable_tqdm=True, seed=3,
            share_prompts=shares,
        )  # fmt: skip
        trainer = DopdTrainer(
            str(nano_models / f"{world}-student"),
            str(nano_models / f"{world}-teacher"),
            args,
            train_dataset=load_examples(str({"vision": vision_data, "text": text_data}[world])),
            objective=Dopd(top_k=16),
        )
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
        weights.append(torch.cat([w.detach().flatten() for w in trainer.model.parameters()]))
    for ours, theirs in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "gap/threshold", "token_share/HT", "entropy/teacher/privileged"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=1e-6), key
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=0)
