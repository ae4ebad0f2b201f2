"""Rollouts are drawn from the policy that is distilled, and from nothing else that the student brings along."""

from typing import Any

import pytest
import torch
from peft import LoraConfig

from dopd_vl import DopdTrainer
from tests.conftest import MakeTrainer


def rollouts_of(trainer: DopdTrainer) -> list[list[int]]:
    """Token ids of all that is drawn while it trains."""
    drawn: list[list[int]] = []
    generate = trainer._generate

    def remember(views: Any) -> Any:
        result = generate(views)
        drawn.extend(result[1])
        return result

    trainer._generate = remember  # type: ignore[method-assign]
    trainer.train()
    return drawn


def with_lora(make_trainer: MakeTrainer, dropout: float, **settings: Any) -> DopdTrainer:
    """A student whose adapters, those of its vision tower too, have learnt something."""
    lora = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer: DopdTrainer = make_trainer(peft_config=lora, learning_rate=0.0, weight_decay=0.0, **settings)
    torch.manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return trainer


def test_rollouts_are_drawn_without_dropout_unless_it_is_asked_for(make_trainer: MakeTrainer) -> None:
    torch.manual_seed(0)
    bare, dropped, as_trl = (
        rollouts_of(with_lora(make_trainer, dropout, max_completion_length=12, rollout_dropout=on))
        for dropout, on in ((0.0, False), (0.5, False), (0.5, True))
    )
    assert dropped == bare
    assert as_trl != bare


@pytest.mark.parametrize("rollout_dropout", [False, True])
def test_scores_are_those_of_the_policy_without_dropout_however_it_rolled_out(
    make_trainer: MakeTrainer, rollout_dropout: bool
) -> None:
    # The copy, which is scored, sees the images that the student rolls out from.
    trainer = with_lora(make_trainer, 0.5, copy_variant="none", rollout_dropout=rollout_dropout)
    score, calls = trainer.policies.score, []

    def remember(*arguments: Any) -> Any:
        calls.append((arguments, score(*arguments)))
        return calls[-1][1]

    trainer.policies.score = remember  # type: ignore[method-assign]
    trainer.train()
    assert calls
    for arguments, found in calls:  # nothing was learnt, and now no image was looked at before
        torch.testing.assert_close(found.scores.logp, score(*arguments).scores.logp)
