"""What TRL's own trainer holds of models, adapters, optimizers and streams holds of ours, with privileged data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dopd_vl.training.run import load_examples
from tests.conftest import MakeTrainer

LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
OWN_CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM
class OwnConfig(Qwen3Config):
    model_type = "own"
class Own(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


def with_setting(models: Path, folder: Path, file: str, **settings: Any) -> str:
    """A copy of the student with other settings in one of its files."""
    shutil.copytree(models / "text-student", folder)
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **settings}))
    return str(folder)


@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_a_model_brings_runs_only_where_it_is_trusted(
    make_trainer: MakeTrainer, nano_models: Path, tmp_path: Path, trusted: bool
) -> None:
    code = {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"}
    student = with_setting(
        nano_models, tmp_path / "own", "config.json", auto_map=code, model_type="own", architectures=["Own"]
    )
    (tmp_path / "own" / "own.py").write_text(OWN_CODE)
    if trusted:
        assert type(make_trainer("text", student=student, trust_remote_code=True).model).__name__ == "Own"
    else:
        with pytest.raises(ValueError, match="custom code"):
            make_trainer("text", student=student)


def test_a_rollout_ends_at_any_end_token_of_the_students(
    make_trainer: MakeTrainer, nano_models: Path, tmp_path: Path
) -> None:
    own = json.loads((nano_models / "text-student" / "generation_config.json").read_text())["eos_token_id"]
    student = with_setting(nano_models, tmp_path / "own", "generation_config.json", eos_token_id=[own, 77])
    trainer = make_trainer("text", student=student)
    drawn = torch.tensor([[50, 77, 51, 52]] * 4)
    trainer.model.generate = lambda input_ids, **asked: torch.cat([input_ids, drawn], 1)
    trainer.train()
    [row] = [row for row in trainer.state.log_history if "loss" in row]
    assert (row["completions/mean_length"], row["completions/clipped_ratio"]) == (2.0, 0.0)


def test_adapters_begin_as_the_seed_says(make_trainer: MakeTrainer) -> None:
    begun = []
    for other in range(2):
        torch.manual_seed(other)
        weights = make_trainer("text", peft_config=LoraConfig(**LORA)).model.state_dict()
        begun.append({name: weight for name, weight in weights.items() if "lora_A" in name})
    assert begun[0]
    assert all(torch.equal(weight, begun[1][name]) for name, weight in begun[0].items())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_model_with_adapters_learns_by_them_alone(
    make_trainer: MakeTrainer, nano_models: Path, checkpointed: bool
) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(nano_models / "text-student"), LoraConfig(**LORA))
    trainer = make_trainer("text", student=model, max_steps=2, gradient_checkpointing=checkpointed)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_virtual_tokens_that_the_loss_would_not_see_are_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="Prompt-learning"):
        make_trainer("text", peft_config=PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))


def test_settings_for_loading_a_teacher_that_is_loaded_are_refused(
    make_trainer: MakeTrainer, nano_models: Path
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(nano_models / "text-teacher")
    with pytest.raises(ValueError, match="teacher_model_init_kwargs"):
        make_trainer("text", teacher=teacher, teacher_model_init_kwargs={"dtype": "float32"})


def test_a_stream_is_read_by_one_worker_and_leaves_the_other_set_its_own(
    make_trainer: MakeTrainer, text_data: Path
) -> None:
    dataset = load_examples(str(text_data))
    streamed = make_trainer("text", dataset=dataset.to_iterable_dataset(), dataloader_num_workers=2)
    assert streamed.args.dataloader_num_workers == 0
    assert streamed.args.accelerator_config.dispatch_batches is False
    beside = make_trainer("text", eval_dataset=dataset.to_iterable_dataset(), dataloader_num_workers=2)
    assert beside.get_train_dataloader().num_workers == 2
