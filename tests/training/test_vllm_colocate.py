"""What TRL hands to vLLM in the trainer's own process: prompts that it puts images into, and room for the longest.

vLLM is not needed: an engine of a few lines stands in for it.
"""

from typing import Any

import pytest
from transformers import AutoConfig

from dopd_vl.common.errors import ConfigurationError
from dopd_vl.nano.tokenizer import MERGED
from dopd_vl.served.protocols import with_one_pad_an_image
from dopd_vl.train_config import DataSettings, LoopSettings, TrainConfig
from dopd_vl.training import checks
from dopd_vl.training.run import load_examples
from tests.conftest import MakeTrainer
from tests.training.fake_vllm import FakeEngine, engines_of_trl

COLOCATED: dict[str, Any] = {"use_vllm": True, "vllm_mode": "colocate", "max_prompt_length": 400}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, nano_models: Any) -> list[FakeEngine]:
    config = AutoConfig.from_pretrained(nano_models / "vision-student")
    end = config.text_config.eos_token_id
    return engines_of_trl(monkeypatch, lambda prompt: [len(prompt) % 600, end], config.image_token_id, MERGED)


def of_no_one_and_two_images(dataset: Any) -> Any:
    """Every third example without its image, every third with it twice, side by side."""

    def change(example: dict[str, Any], number: int) -> dict[str, Any]:
        times = number % 3
        for message in example["prompt"]:
            message["content"] = message["content"].replace("<image>", "<image>" * times)
        return {**example, "images": example["images"] * times}

    return dataset.map(change, with_indices=True)


def test_vllm_in_this_process_reads_the_plain_view_whatever_images_it_has(
    engines: list[FakeEngine], make_trainer: MakeTrainer, vision_data: Any
) -> None:
    dataset = of_no_one_and_two_images(load_examples(str(vision_data)))
    settings = {"num_generations": 2, "per_device_train_batch_size": 12, "rollouts_to_keep": 12}
    trainer = make_trainer(
        "vision", dataset=dataset, teacher_variant="hints", copy_variant="none", **settings, **COLOCATED
    )
    trainer.train()
    (engine,) = engines
    assert trainer.refusals == []
    views = [trainer.views.view(rollout.example) for rollout in trainer.kept_rollouts]
    assert {len(view.images) for view in views} == {0, 1, 2}
    assert engine.prompts == [view.prompt_ids for view in views]
    assert [list(rollout.response) for rollout in trainer.kept_rollouts] == [
        engine.answer(ids) for ids in engine.prompts
    ]


def test_a_prompt_whose_images_stand_side_by_side_is_refused() -> None:
    assert with_one_pad_an_image([1, 7, 7, 2, 7, 3], 2, 7) == [1, 7, 2, 7, 3]
    assert with_one_pad_an_image([4], 0, 7) == [4]
    with pytest.raises(ValueError, match="1 runs of image tokens in a prompt with 2 images"):
        with_one_pad_an_image([1, 7, 7, 7, 7, 3], 2, 7)


@pytest.mark.parametrize(("given", "length"), [(None, 406), (512, 512)])
def test_it_has_room_for_the_longest_prompt_and_response_and_sleeps_between_rollouts(
    engines: list[FakeEngine], make_trainer: MakeTrainer, given: int | None, length: int
) -> None:
    settings = {"vllm_max_model_length": given, "vllm_enable_sleep_mode": True, "vllm_gpu_memory_utilization": 0.2}
    make_trainer("text", **settings, **COLOCATED).train()
    (engine,) = engines
    assert (engine.settings["max_model_len"], engine.settings["gpu_memory_utilization"]) == (length, 0.2)
    rollout = ["load_weights", "reset_prefix_cache", "wake kv_cache", "generate", "sleep 2"]
    assert [call for call in engine.calls if call != "wake weights"] == ["sleep 2", *rollout]


@pytest.mark.parametrize(
    ("prompt", "trl", "message"),
    [
        (None, {}, r"data\.max_prompt_length: give it"),
        (None, {"vllm_max_model_length": 9000}, r"data\.max_prompt_length: give it"),
        (
            1024,
            {"vllm_max_model_length": 3071},
            r"trl\.vllm_max_model_length: 3071 is less than .* 1024 \+ 2048 tokens",
        ),
    ],
)
def test_a_length_that_is_unknown_or_too_small_is_named(prompt: int | None, trl: dict[str, Any], message: str) -> None:
    settings = TrainConfig(
        data=DataSettings(max_prompt_length=prompt),
        training=LoopSettings(use_vllm=True, max_completion_length=2048),
        trl=trl,
    )
    with pytest.raises(ConfigurationError, match=message):
        checks.check(settings)
    settings.trl = {"vllm_mode": "server"}
    checks.check(settings)
