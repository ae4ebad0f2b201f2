"""Models whose weights are of 4 or 8 bits: a teacher that scores, and a student that learns by adapters (QLoRA)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.files import read_jsonl
from dopd_vl.objectives.common import PRIVILEGED_TEACHER
from dopd_vl.training.checks import check_quantised
from dopd_vl.training.run import load_examples
from dopd_vl.training.teachers import Teacher, quantized
from tests.commands import dopd_vl
from tests.conftest import MakeTrainer

bitsandbytes = pytest.importorskip("bitsandbytes")
PACKS = bitsandbytes.functional.has_avx512bf16()
"""Whether bitsandbytes packs weights of 4 bits for this CPU, which it can only where widths are multiples of 64."""
FAMILIES: dict[str, Any] = {"text": AutoModelForCausalLM, "vision": AutoModelForImageTextToText}


def train(models: Path, data: Path, run: Path, world: str, *more: str) -> Any:
    settings = {
        "output_dir": run,
        "model.student": models / f"{world}-student",
        "model.teacher": models / f"{world}-teacher",
        "data.train": data,
        "training.max_steps": 2,
        "training.per_device_train_batch_size": 4,
        "training.num_generations": 2,
        "training.max_completion_length": 6,
        "training.gradient_checkpointing": "false",
        "training.learning_rate": 0.01,
    }
    return dopd_vl("train", *(word for key, value in settings.items() for word in (f"--{key}", str(value))), *more)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("world", ["text", "vision"])
def test_a_teacher_of_few_bits_scores_as_it_is(
    make_trainer: MakeTrainer, nano_models: Path, world: str, bits: Any
) -> None:
    if PACKS and bits == "4bit" and world == "vision":
        pytest.skip("the nano vision tower is 96 wide, and bitsandbytes fails on it on this CPU")
    folder = str(nano_models / f"{world}-teacher")
    kwargs = {"dtype": "float32", **quantized(bits)}
    trainer = make_trainer(world, teacher=folder, teacher_model_init_kwargs=kwargs, max_steps=1)
    assert trainer.teacher_model.is_quantized
    seen: list[Any] = []
    decide = trainer.objective.decide

    class Watched:
        name, top_k = "dopd", 128
        sources = trainer.objective.sources

        def decide(self, scores: Any) -> Any:
            seen.append(scores)
            return decide(scores)

    trainer.objective = Watched()
    batches: list[Any] = []
    inner = trainer._roll_out_and_score
    trainer._roll_out_and_score = lambda inputs: (batches.append(inputs), inner(inputs))[1]
    trainer.train()
    model = FAMILIES[world].from_pretrained(folder, **kwargs).eval()
    plain = FAMILIES[world].from_pretrained(folder, dtype="float32").eval()
    [scores], [examples] = seen, batches
    far = 0.0
    for row, example in enumerate(examples):
        n = int(scores.response_mask[row].sum())
        ids = scores.response_ids[row, :n].tolist()
        view = trainer.views.view(example, "box_label" if world == "vision" else "hints")
        batch = trainer.views.collate([view], [ids], trainer.views.tokenizer.pad_token_id)
        with torch.no_grad():
            logp, unquantised = (m(**batch).logits[0, -n - 1 : -1].float().log_softmax(-1) for m in (model, plain))
        own = logp.gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)
        # 8 bits round activations by the batch's largest: those of another batch are rounded otherwise.
        near = 0.05 if bits == "8bit" else 2e-3
        torch.testing.assert_close(scores.policies[PRIVILEGED_TEACHER].logp[row, :n], own, atol=near, rtol=near)
        far = max(far, float((logp - unquantised).abs().max()))
    assert far > 1e-3


@pytest.mark.parametrize("world", ["text", "vision"])
def test_adapters_learn_on_a_student_of_four_bits(
    nano_models: Path, text_data: Path, vision_data: Path, tmp_path: Path, world: str
) -> None:
    if PACKS and world == "vision":
        pytest.skip("the nano vision tower is 96 wide, and bitsandbytes fails on it on this CPU")
    data = {"text": text_data, "vision": vision_data}[world]
    more = ("--model.quantization", "4bit", "--model.teacher_quantization", "4bit", "--model.lora.r", "4")
    done = train(nano_models, data, tmp_path / "run", world, *more)
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 2
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    adapters = load_file(tmp_path / "run" / "student" / "adapter_model.safetensors")
    learnt = [tensor for name, tensor in adapters.items() if "lora_B" in name]
    assert learnt
    assert any(tensor.abs().max() > 0 for tensor in learnt)
    base = FAMILIES[world].from_pretrained(nano_models / f"{world}-student")
    joined = PeftModel.from_pretrained(base, tmp_path / "run" / "student").merge_and_unload()
    assert all(weight.isfinite().all() for weight in joined.parameters())


def test_one_of_several_teachers_is_of_few_bits(make_trainer: MakeTrainer, nano_models: Path, text_data: Path) -> None:
    dataset = load_examples(str(text_data))
    task = dataset["task"][0]
    own = Teacher(str(nano_models / "text-teacher"), tasks=[task], init_kwargs=quantized("8bit"))
    trainer = make_trainer("text", teachers={"own": own}, dataset=dataset)
    trainer.train()
    assert trainer.models.bare("teacher:own").is_quantized
    assert not getattr(trainer.models.bare("teacher"), "is_quantized", False)


def test_weights_that_vllm_or_shards_would_need_are_refused(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    more = ("--model.quantization", "4bit", "--model.lora.r", "4", "--training.use_vllm", "true")
    refused = train(nano_models, text_data, tmp_path / "run", "text", *more)
    assert refused.returncode == 2
    assert "model.quantization: vLLM is handed the student's weights" in refused.stderr
    few = AutoModelForCausalLM.from_pretrained(nano_models / "text-student", **quantized("4bit"))
    for student, teachers, fsdp, stage, told in (
        (few, [], True, 0, "model.quantization: was not made for FSDP"),
        (few, [], False, 2, "model.quantization: was not made for DeepSpeed"),
        (None, [None, few], False, 3, "model.teacher_quantization: was not made for DeepSpeed"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            check_quantised(student, teachers, fsdp, stage)
    check_quantised(few, [few], fsdp=False, zero_stage=0)
