"""Rollouts are drawn from the policy that is distilled, and from nothing else that the student brings along."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from dopd_vl import DopdTrainer
from dopd_vl.common.errors import UserError
from dopd_vl.objectives import Opd
from dopd_vl.training.run import load_examples
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


OWN = {"no_repeat_ngram_size": 1, "num_beams": 2, "bad_words_ids": [[7], [8]], "repetition_penalty": 5.0, "min_p": 0.5}


def with_own_settings(folder: Path, models: Path) -> str:
    """A student whose folder says how to generate."""
    shutil.copytree(models / "text-student", folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **OWN}))
    return str(folder)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_students_own_generation_config_draws_no_rollout_and_is_told_of_once(
    lora: bool, make_trainer: MakeTrainer, nano_models: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"max_steps": 2, "max_completion_length": 12}
    if lora:
        more["peft_config"] = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    bare = rollouts_of(make_trainer("text", **more))
    student = with_own_settings(tmp_path / "student", nano_models)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer("text", student=student, **more)
        assert rollouts_of(trainer) == bare
    (told,) = [text for warning in caught if "generation_config" in (text := str(warning.message))]
    assert "no_repeat_ngram_size=1" in told
    kept = trainer.models.bare("student").generation_config
    assert kept.no_repeat_ngram_size == 1  # whoever loads the student finds it as it was


def test_tokens_that_a_user_suppresses_stay_so_beside_image_placeholders(make_trainer: MakeTrainer) -> None:
    even = list(range(0, 600, 2))
    trainer = make_trainer(generation_kwargs={"suppress_tokens": even}, max_completion_length=24)
    placeholder = trainer.model.config.image_token_id
    assert placeholder not in even
    with torch.no_grad():
        head = trainer.model.get_output_embeddings().weight
        head[placeholder] = 50 * head.mean(0)
    drawn = {token for ids in rollouts_of(trainer) for token in ids}
    assert drawn
    assert not drawn & {placeholder, *even}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_rollouts_of_a_stream_are_judged_by_the_answers_of_their_own_prompts(
    make_trainer: MakeTrainer, text_data: Path, accumulated: int
) -> None:
    stream = load_examples(str(text_data)).to_iterable_dataset()
    trainer = make_trainer(
        "text", dataset=stream, num_generations=2, gradient_accumulation_steps=accumulated, max_steps=2
    )
    step, seen = trainer._roll_out_and_score, []

    def remember(inputs: list[dict[str, Any]]) -> Any:
        seen.append([example["id"] for example in inputs])
        return step(inputs)

    trainer._roll_out_and_score = remember
    trainer.train()
    assert [len(ids) for ids in seen] == [4 * accumulated] * 2
    assert [ids[::2] for ids in seen] == [ids[1::2] for ids in seen]
    assert len({identifier for ids in seen for identifier in ids}) == 4 * accumulated


@pytest.mark.parametrize("loaded", [False, True], ids=["folder", "model"])
def test_a_teacher_with_other_token_ids_is_refused(
    make_trainer: MakeTrainer, nano_models: Path, tmp_path: Path, loaded: bool
) -> None:
    teacher: Any = tmp_path / "teacher"
    shutil.copytree(nano_models / "text-teacher", teacher)
    file = teacher / "tokenizer.json"
    described = json.loads(file.read_text())
    vocabulary = described["model"]["vocab"]
    one, two = [token for token in vocabulary if token.isalpha()][-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(described))
    if loaded:
        teacher = AutoModelForCausalLM.from_pretrained(teacher)
    with pytest.raises(UserError, match=r"^teacher_model: its tokenizer gives tokens other ids"):
        make_trainer("text", teacher=teacher if loaded else str(teacher))


def test_what_is_asked_of_rollouts_or_of_learning_alone_does_it(make_trainer: MakeTrainer) -> None:
    def run(seed: int, **settings: Any) -> tuple[list[list[int]], float]:
        trainer = make_trainer("text", objective=Opd(), shuffle_dataset=False, seed=seed, **settings)
        torch.manual_seed(seed)
        return rollouts_of(trainer), next(row["loss"] for row in trainer.state.log_history if "loss" in row)

    drawn, loss = run(3)
    with_noise, noisy_loss = run(3, neftune_noise_alpha=50.0)
    assert (with_noise == drawn, noisy_loss == loss) == (True, False)
    assert run(4)[0] != drawn
    assert run(3, top_k=1)[0] == run(4, top_k=1)[0] == run(4, generation_kwargs={"do_sample": False})[0]
