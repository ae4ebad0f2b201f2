"""Policies alone, with no trainer: what they score is what the models say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vl.core import Source
from dopd_vl.core.projection import Projector
from dopd_vl.objectives.base import Pair
from dopd_vl.objectives.common import PLAIN_STUDENT, PLAIN_TEACHER, PRIVILEGED_TEACHER
from dopd_vl.training.policies import Policies
from dopd_vl.training.run import load_examples
from dopd_vl.training.sharding import Models
from dopd_vl.training.student_copies import StudentCopies
from dopd_vl.views import View, processor_for
from tests.families import RECURRENT, TEXT, VISION

RESPONSES = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
MASK = torch.tensor([[position < len(ids) for position in range(4)] for ids in RESPONSES])


class World:
    """Two models, and four rollouts of two prompts."""

    def __init__(self, name: str, models: Path, data: Path):
        kind: Any = AutoModelForImageTextToText if name == "vision" else AutoModelForCausalLM
        self.student, self.teacher = (
            kind.from_pretrained(models / f"{name}-{role}").train() for role in ("student", "teacher")
        )
        processor = AutoProcessor.from_pretrained(models / f"{name}-student", padding_side="left")
        self.views = processor_for(self.student.config, processor)
        self.privileged = "box_label" if name == "vision" else "hints"
        self.examples = list(load_examples(str(data)).select(range(2)))

    def shown(self, variant: str = "none") -> list[View]:
        one, two = (self.views.view(example, variant) for example in self.examples)
        return [one, one, two, two]

    def policies(self, **settings: Any) -> Policies:
        copies = StudentCopies(self.student, {"teacher", "student", "start", "average"}, average_rate=0.5)
        copies.begin(self.student, None)
        return Policies(Models(self.student, self.teacher), self.views, copies, **{"batch_size": 2, **settings})

    @torch.no_grad()
    def logp(self, model: Any, views: list[View]) -> list[torch.Tensor]:
        """Log-probabilities `[n, V]` before each token of the responses, one forward pass a rollout, dropout off."""
        found = []
        for view, response in zip(views, RESPONSES, strict=True):
            batch = self.views.collate([view], [response], self.views.tokenizer.pad_token_id)
            logits = model.eval()(**batch).logits[0, -len(response) - 1 : -1]
            found.append(logits.log_softmax(-1))
        model.train()
        return found


@pytest.fixture(params=["text", "vision", *VISION, *TEXT])
def world(request: pytest.FixtureRequest, families: Callable[[str], Path], text_data: Path, vision_data: Path) -> World:
    if request.param in ("text", *TEXT):
        return World("text", families(request.param), text_data)
    return World("vision", families(request.param), vision_data)


def sampled(world: World, model: Any, views: list[View]) -> torch.Tensor:
    values = torch.zeros(4, 4)
    for row, (logp, ids) in enumerate(zip(world.logp(model, views), RESPONSES, strict=True)):
        values[row, : len(ids)] = logp[range(len(ids)), ids]
    return values


@pytest.mark.parametrize("share_prompts", [True, False])
def test_scores_are_what_each_model_says_on_its_own_view(world: World, share_prompts: bool) -> None:
    policies = world.policies(share_prompts=share_prompts)
    assert policies.shares_prompts("teacher") == (share_prompts and world.student.config.model_type not in RECURRENT)
    for source, model, variant in (
        (PLAIN_STUDENT, world.student, "none"),
        (PRIVILEGED_TEACHER, world.teacher, world.privileged),
    ):
        views = world.shown(variant)
        scored = policies.score(source, views, RESPONSES, MASK)
        assert torch.allclose(scored.scores.logp, sampled(world, model, views), atol=1e-5)
        assert not scored.hidden.requires_grad
        assert model.training  # as it was before


def test_tokens_that_are_masked_are_not_scored(world: World) -> None:
    mask = MASK.clone()
    mask[2] = False
    scores = world.policies().score(PLAIN_STUDENT, world.shown(), RESPONSES, mask).scores
    assert scores.logp[2].eq(0).all()
    assert scores.logp[3].lt(0).all()


def test_the_student_at_another_time_scores_with_the_weights_of_that_time(world: World) -> None:
    policies, views = world.policies(), world.shown()
    before = sampled(world, world.student, views)
    with torch.no_grad():
        for weight in world.student.parameters():
            weight.add_(0.02)
    now = sampled(world, world.student, views)
    start = policies.score(Source("start", "plain"), views, RESPONSES, MASK).scores.logp
    assert torch.allclose(start, before, atol=1e-5)
    assert not torch.allclose(start, now, atol=1e-3)
    assert torch.allclose(sampled(world, world.student, views), now)  # and the student has its own again


def test_a_divergence_of_two_policies_is_over_the_whole_vocabulary(world: World) -> None:
    policies, views = world.policies(), world.shown()
    scored = {source: policies.score(source, views, RESPONSES, MASK) for source in (PLAIN_STUDENT, PLAIN_TEACHER)}
    found = policies.measure(Pair("reverse_kl", PLAIN_STUDENT, PLAIN_TEACHER), scored, MASK)
    pairs = zip(world.logp(world.student, views), world.logp(world.teacher, views), strict=True)
    for row, (student, teacher) in enumerate(pairs):
        expected = (student.exp() * (student - teacher)).sum(-1)
        assert torch.allclose(found[row, : len(expected)], expected, atol=1e-5)


def test_a_gradient_reaches_the_student_through_hidden_states_and_head(world: World) -> None:
    policies = world.policies()
    hidden = policies.hidden_states("student", world.shown(), RESPONSES)
    projection = policies.projection(PLAIN_STUDENT, hidden, constant=False)
    Projector(projection).logits(tuple(MASK.nonzero().unbind(1))).logsumexp(-1).sum().backward()
    assert world.student.get_output_embeddings().weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in world.teacher.parameters())


def test_a_model_that_scales_its_logits_is_refused(world: World) -> None:
    world.teacher.config.get_text_config().logit_scale = 0.5
    with pytest.raises(ValueError, match=r"the teacher scales its logits \(logit_scale=0.5\)"):
        world.policies()


def test_without_a_teacher_nothing_acts_as_one(world: World) -> None:
    with pytest.raises(ValueError, match="no teacher_model"):
        Models(world.student).wrapped("teacher")
