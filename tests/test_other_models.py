"""Another family than Qwen3: a Llama with SmolLM2's tokens and template trains with adapters, goes on, and is scored.

An untrained one of two layers here; tests/test_other_models_page.py trains the pretrained SmolLM2-135M.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from dopd_vl.cli import main
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.common.visible import in_card
from dopd_vl.train_config import DataSettings, LoopSettings, LoraSettings, ModelSettings, ObjectiveSettings, TrainConfig
from dopd_vl.training.prompt_sharing import can_go_on
from dopd_vl.training.run import run_training
from dopd_vl.views import Request, View, processor_for

# SmolLM2's, which greets with a system message of its own and can only join strings.
TEMPLATE = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
PARTS = {"dopd": ("LH", "LL", "HT", "HS"), "dopd-anchored": ("teacher", "copy")}
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"


@pytest.fixture(scope="session")
def llama(nano_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama; as in SmolLM2 the end of a turn is also what fills up, and head and embedding are one."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    words = AutoTokenizer.from_pretrained(nano_models / "text-student")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(model: Path, data: Path, folder: Path, objective: str) -> TrainConfig:
    return TrainConfig(
        output_dir=str(folder),
        model=ModelSettings(student=str(model), teacher=str(model), lora=LoraSettings(r=4, alpha=8)),
        data=DataSettings(train=str(data), eval=str(data), eval_size=4),
        objective=ObjectiveSettings(name=objective),
        training=LoopSettings(
            max_steps=4,
            learning_rate=1e-2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            gradient_checkpointing=False,
            eval_steps=4,
            save_steps=2,
            save_total_limit=4,
            eval_variants=["none", "hints"],
        ),
    )


@pytest.fixture(scope="module", params=["dopd", "dopd-anchored"])
def run(request: pytest.FixtureRequest, llama: Path, text_data: Path, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    run_training(settings(llama, text_data, folder, request.param), console=Console(quiet=True))
    return folder


def check_run(run: Path, base: Path, steps: int, objective: str) -> None:
    """What any run with adapters on a ChatML model of this family must have left."""
    rows = read_jsonl(run / "metrics.jsonl")
    learned = [row for row in rows if "loss" in row]
    assert [row["step"] for row in learned] == list(range(1, steps + 1))
    for row in learned:
        assert all(math.isfinite(row[key]) for key in ("loss", "grad_norm", "entropy", "token_loss"))
        assert row["grad_norm"] > 0
        assert sum(row[f"token_share/{name}"] for name in PARTS[objective]) == pytest.approx(1.0)
    scored = [row for row in rows if "eval_accuracy" in row]
    assert [row["step"] for row in scored] == [0, steps]
    assert all(math.isfinite(row[key]) for row in scored for key in ("eval_entropy", "eval_hints_accuracy"))

    tokenizer = AutoTokenizer.from_pretrained(base)
    copy = {"dopd": "student/privileged", "dopd-anchored": "start/privileged"}[objective]
    records = read_jsonl(run / "rollouts.jsonl")
    asked = [record for record in records if "views" in record]  # the first rollout of each prompt
    assert {record["step"] for record in asked} == set(range(1, steps + 1))
    for record in asked:
        views = {source: view for view in record["views"] for source in view["sources"]}
        plain, privileged = views["student/plain"]["prompt"], views["teacher/privileged"]["prompt"]
        for prompt in (plain, privileged):
            assert prompt.startswith(SYSTEM)
            assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert views[copy]["prompt"] == privileged
        assert "Hints:\n1. " in privileged
        assert "Hints:" not in plain
        assert plain.removesuffix("<|im_end|>\n<|im_start|>assistant\n") in privileged
    for record in records:
        # What was routed, weighed and taught are the response's own tokens, its end among them, and no others.
        assert record["tokens"]
        assert tokenizer.eos_token not in record["tokens"][:-1]
        for column in ("gap", "loss", "logp/teacher/privileged", f"logp/{copy}", "logp/student/plain"):
            assert len(record[column]) == len(record["tokens"])

    student = run / "student"
    adapters = load_file(student / "adapter_model.safetensors")
    assert {name.rpartition("lora_")[2] for name in adapters} == {"A.weight", "B.weight"}
    assert any(tensor.abs().max() > 0 for name, tensor in adapters.items() if "lora_B" in name)
    assert not list(student.glob("model*.safetensors"))
    card = (student / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card
    assert f"| objective | {in_card(objective)} |" in card


def test_it_learns_on_its_own_chat_template_and_leaves_adapters(run: Path, llama: Path) -> None:
    check_run(run, llama, steps=4, objective=run.name)


def test_a_student_that_is_its_own_teacher_begins_without_a_gap(run: Path) -> None:
    # Fresh adapters change nothing: teacher and live copy are one at first and part as the student learns; a copy that
    # stays at the start stays the teacher.
    gaps = [row["gap/threshold"] for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert gaps[0] == pytest.approx(0, abs=1e-5)
    assert (gaps[-1] > 1e-3) == (run.name == "dopd")


def test_it_goes_on_from_a_checkpoint_of_adapters(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for name in ("student", "best", "checkpoint-4"):
        shutil.rmtree(again / name)
    assert main(["train", "--config", str(run / "config.yaml"), "--output_dir", str(again), "--resume", "true"]) == 0
    for name in ("metrics.jsonl", "rollouts.jsonl", "student/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


def test_base_and_adapters_are_scored_as_one_model(run: Path, llama: Path, text_data: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--data", str(text_data), "--size", "4", "--max_new_tokens", "8"]
    for name, model in (("student", run / "student"), ("base", llama)):
        assert main([*words, "--model", str(model), "--output_dir", str(tmp_path / name)]) == 0
    scores = {name: json.loads((tmp_path / name / "scores.json").read_text()) for name in ("student", "base")}
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "eval_accuracy" in row]
    assert scores["base"]["entropy"] == pytest.approx(rows[0]["eval_entropy"], rel=1e-4)
    assert scores["student"]["entropy"] == pytest.approx(rows[-1]["eval_entropy"], rel=1e-4)
    assert scores["student"]["entropy"] != pytest.approx(scores["base"]["entropy"], rel=1e-4)


def test_another_base_under_the_same_adapters_is_another_evaluation(
    run: Path, llama: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, base = tmp_path / "student", tmp_path / "base"
    shutil.copytree(run / "student", student)
    shutil.copytree(llama, base)
    described = json.loads((student / "adapter_config.json").read_text())
    (student / "adapter_config.json").write_text(json.dumps({**described, "base_model_name_or_path": str(base)}))
    words = ["evaluate", "--model", str(student), "--data", str(text_data), "--size", "2", "--max_new_tokens", "2"]
    words += ["--output_dir", str(tmp_path / "scores")]
    assert main(words) == 0
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 0.5 for name, weight in weights.items()}, base / "model.safetensors")
    assert main(words) == 2
    assert "base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "does not name the model that its adapters"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
        (
            lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/no/such"}'),
            "model: the base of its adapters: no folder /no/such",
        ),
    ],
)
def test_adapters_that_cannot_be_used_are_one_line(
    break_it: Callable[[Path], None],
    message: str,
    run: Path,
    text_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = tmp_path / "student"
    shutil.copytree(run / "student", student)
    break_it(student)
    assert (
        main(["evaluate", "--model", str(student), "--data", str(text_data), "--output_dir", str(tmp_path / "o")]) == 2
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_adapters_alone_are_not_trained_on(run: Path, llama: Path, text_data: Path, tmp_path: Path) -> None:
    for student, teacher, key in ((run / "student", llama, "student"), (llama, run / "student", "teacher")):
        config = settings(llama, text_data, tmp_path / "run", "dopd")
        config.model.student, config.model.teacher = str(student), str(teacher)
        with pytest.raises(UserError, match=rf"model\.{key}: .* holds adapters of .* and no whole model"):
            run_training(config, console=Console(quiet=True))


def test_a_tokenizer_without_a_template_is_one_line(llama: Path, text_data: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template; use an instruction-tuned model"):
        run_training(settings(base, text_data, tmp_path / "run", "dopd"), console=Console(quiet=True))


def test_an_example_that_the_template_refuses_is_passed_over_by_id(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refuses + TEMPLATE
    views = processor_for(LlamaConfig(), tokenizer)
    asked = [{"role": "user", "content": "Hello?"}]
    ordered = [{"role": "system", "content": "Be brief."}, *asked]
    examples = [{"id": name, "prompt": prompt, "images": []} for name, prompt in (("a", ordered), ("b", asked))]
    refused, shown = views.view_all([Request(example) for example in examples])
    assert str(refused) == "example 'a': the chat template refuses its messages (System role not supported)"
    assert isinstance(shown, View)


def test_a_model_with_learned_positions_is_refused(llama: Path) -> None:
    with pytest.raises(UserError, match="gpt2 model has learned positions"):
        processor_for(GPT2Config(), AutoTokenizer.from_pretrained(llama))


def test_only_keys_and_values_are_gone_on_from() -> None:
    assert can_go_on(LlamaConfig(num_hidden_layers=2))
    assert can_go_on(MistralConfig(num_hidden_layers=2, sliding_window=8))
    assert not can_go_on(MambaConfig(num_hidden_layers=2))
    assert not can_go_on(Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]))


def test_a_model_with_a_recurrent_state_trains(llama: Path, text_data: Path, tmp_path: Path) -> None:
    base = tmp_path / "lfm2"
    shutil.copytree(llama, base)
    described = json.loads((llama / "config.json").read_text())
    sizes = {name: described[name] for name in ("vocab_size", "hidden_size", "num_attention_heads", "eos_token_id")}
    config = Lfm2Config(**sizes, num_hidden_layers=2, layer_types=["conv", "full_attention"], num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    run_settings = settings(base, text_data, tmp_path / "run", "dopd")
    run_settings.training.max_steps = 1
    result = run_training(run_settings, console=Console(quiet=True))
    assert [math.isfinite(row["loss"]) for row in result.metrics if "loss" in row] == [True]
