"""Served, several and quantised teachers, and a quantised student: what is here of them is counted, no more."""

import copy
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from dopd_vl.commands.plan import main
from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import UserError
from dopd_vl.planning import advice
from dopd_vl.planning.build import workload_of
from dopd_vl.planning.catalogue import model_shape
from dopd_vl.planning.compute import Machine, time_of
from dopd_vl.planning.config import PlanConfig
from dopd_vl.planning.host import host_lines, network_of
from dopd_vl.planning.lines import Line
from dopd_vl.planning.memory import memory_of
from dopd_vl.planning.workload import Workload
from dopd_vl.train_config import Quantization
from dopd_vl.training.teachers import quantized

GB = 10**9
BASE = ["--config", "llm/qwen3-8b-to-1.7b", "--training.use_vllm", "false", "--gpus", "8x80"]
SERVED = ["--model.teacher", "http://host:8000"]
MATH = ["--model.teachers.math.model", "Qwen/Qwen3-4B", "--model.teachers.math.sources", "[gsm8k]"]
MACHINE = Machine(tflops=100, bandwidth_tb=2, mfu=0.5, mbu=0.5)


def config_of(*words: str) -> PlanConfig:
    return read_config(PlanConfig, [*BASE, *words], "test")


def work_of(*words: str) -> Workload:
    return workload_of(config_of(*words))


def lines_of(work: Workload) -> dict[str, Line]:
    return {line.name: line for line in memory_of(work).lines}


def scoring_parts(work: Workload) -> dict[str, float]:
    return {part.name: part.flops for part in time_of(work, MACHINE, work) if part.name.startswith("scoring")}


# ---- served --------------------------------------------------------------------------------------------------------


def test_of_a_served_teacher_nothing_is_here_but_its_entries(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert main([*BASE, *SERVED, "--model.server.key_env", "NOT_SET_HERE"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "served teacher http://host:8000" in text
    assert "128 entries a token" in text
    assert "all other tokens as one" in text
    assert "not known here" in text
    assert "without communication and served teachers" in text


def test_terms_over_its_whole_vocabulary_need_no_hidden_states() -> None:
    here, served = work_of(), work_of(*SERVED)
    assert here.full_support
    assert not served.full_support
    gone = {name for name in lines_of(here) if "teacher" in name} - set(lines_of(served))
    assert "teacher's weights" in gone
    assert {name for name in gone if "hidden states" in name}
    assert not [name for name in lines_of(served) if "hidden states of teacher" in name]
    assert list(scoring_parts(served)) == ["scoring: student (privileged)"]
    kept = "kept scores of teacher (privileged)"
    assert lines_of(served)[kept].bytes == lines_of(here)[kept].bytes  # K entries either way


@pytest.mark.parametrize(("wanted", "entries"), [("8", 20), ("64", 64)])
def test_no_fewer_entries_are_asked_for_than_training_asks_for(wanted: str, entries: int) -> None:
    more = ("--training.logged_top_k", wanted, "--objective.settings.top_k", wanted)
    work = work_of(*SERVED, *more)
    assert work.served is not None
    assert work.served.top_k == entries
    tokens = 16 * 4096
    assert lines_of(work)["kept scores of teacher (privileged)"].bytes == tokens * (8 * entries + 20)


def test_an_entry_of_an_answer_is_as_long_as_vllms() -> None:
    work = work_of(*SERVED)
    assert work.served is not None
    answers, images = network_of(work, work.served)
    assert images == 0
    entries = 128 * 128 * (4096 + 4096)  # rollouts, entries, and the tokens of prompt and response
    shown = '"12345":' + json.dumps(
        {"logprob": -12.345678329467773, "rank": 12, "decoded_token": " abc"}, separators=(",", ":")
    )
    assert answers / entries == pytest.approx(len(shown) + 1, abs=3)
    by_sglang = network_of(work, replace(work.served, sglang=True))
    assert by_sglang.answers < answers / 4  # of the response alone, and shorter


def test_images_go_to_the_server_and_answers_take_main_memory() -> None:
    words = ["--config", "vlm/qwen3-vl-8b-to-2b", "--gpus", "8x80", *SERVED]
    work = workload_of(read_config(PlanConfig, words, "test"))
    assert work.served is not None
    assert network_of(work, work.served).images == 64 * 1280 * 32**2 * 3 * 4 // 3
    (answers,) = [line for line in host_lines(work) if "answers" in line.name]
    assert answers.bytes == 8 * 8 * (4096 + 2048) * 128 * 500
    (fewer,) = [
        line
        for line in host_lines(replace(work, served=replace(work.served, concurrency=2)))
        if line.name == answers.name
    ]
    assert fewer.bytes == answers.bytes // 4


@pytest.mark.parametrize("name", ["opcd", "tip"])
def test_what_no_server_gives_is_neither_planned_nor_proposed(name: str) -> None:
    with pytest.raises(UserError, match=r"objective\.name"):
        work_of(*SERVED, "--objective.name", name)
    config = config_of("--objective.name", name)
    for proposal in advice._smaller_teachers(workload_of(config)):
        sound = advice._sound(config, [proposal]) is not None
        assert sound == ("model.teacher" not in proposal.values)


# ---- several -------------------------------------------------------------------------------------------------------


def test_every_teacher_here_is_counted_and_each_teaches_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    alone, small = model_shape("Qwen/Qwen3-8B", "model.teacher"), model_shape("Qwen/Qwen3-4B", "model.teacher")
    one, two = work_of(), work_of(*MATH)
    held = lines_of(two)
    assert held["teacher default's weights"].bytes == 2 * alone.parameters
    assert held["teacher math's weights"].bytes == 2 * small.parameters
    parts = scoring_parts(two)
    whole = scoring_parts(one)["scoring: teacher (privileged)"]
    assert parts["scoring: teacher default (privileged)"] == pytest.approx(whole / 2)
    assert 0 < parts["scoring: teacher math (privileged)"] < whole / 2
    # Whoever teaches, the step has so many tokens; the widest teacher's hidden states are counted.
    kept = "kept hidden states of teacher (privileged)"
    assert held[kept].bytes == lines_of(one)[kept].bytes
    sharded = lines_of(work_of(*MATH, "--training.shard_teacher", "true"))
    assert sharded["teacher math's weights"].bytes == 2 * small.parameters // 8
    assert main([*BASE, *MATH, "--gpus", "8x141"]) == 0
    assert "an equal share in time" in " ".join(capsys.readouterr().out.split())


def test_one_here_and_one_served_are_each_what_they_are() -> None:
    work = work_of(*SERVED, *MATH)
    assert [teacher.name for teacher in work.teachers] == ["math"]
    assert work.full_support  # of the one that is here
    assert list(scoring_parts(work)) == ["scoring: teacher math (privileged)", "scoring: student (privileged)"]
    assert "kept hidden states of teacher (privileged)" in lines_of(work)


# ---- quantised -----------------------------------------------------------------------------------------------------


def test_quantised_weights_by_hand() -> None:
    # Qwen3-8B: 36 layers of q, o (4096 x 4096), k, v (1024 x 4096) and three of 12288 x 4096; embedding and head stay.
    shape = model_shape("Qwen/Qwen3-8B", "model.teacher")
    linear = 36 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 12_288)
    assert shape.linear_parameters == linear
    assert shape.weight_bytes(2, "8bit") == linear + 2 * (shape.parameters - linear)
    assert shape.weight_bytes(2, "4bit") == pytest.approx(
        linear * 4.127 / 8 + 2 * (shape.parameters - linear), rel=1e-4
    )
    assert shape.parameters - linear == pytest.approx(2 * 151_936 * 4096, rel=1e-3)
    work = work_of("--model.teacher_quantization", "4bit")
    assert lines_of(work)["teacher's weights"].bytes == shape.weight_bytes(2, "4bit")
    assert lines_of(work)["a teacher's weights dequantised"].bytes == 2 * 12_288 * 4096


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("world", ["text", "vision"])
def test_quantised_weights_take_what_bitsandbytes_holds_of_them(
    nano_models: Path, world: str, bits: Quantization
) -> None:
    pytest.importorskip("bitsandbytes")
    family: Any = AutoModelForImageTextToText if world == "vision" else AutoModelForCausalLM
    folder = str(nano_models / f"{world}-teacher")
    model = family.from_pretrained(folder, dtype="bfloat16", **quantized(bits))
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    for weight in model.parameters():
        if (state := getattr(weight, "quant_state", None)) is not None:
            held += state.absmax.numel() * state.absmax.element_size() + 4 * state.state2.absmax.numel()
    planned = model_shape(folder, "model.teacher").weight_bytes(2, bits)
    assert planned == pytest.approx(held, rel=0.02)
    assert planned < 0.9 * model_shape(folder, "model.teacher").weight_bytes(2)


def test_a_mixtures_experts_are_no_linear_layers_and_stay_as_they_are() -> None:
    shape = model_shape("Qwen/Qwen3-30B-A3B", "model.teacher")
    assert shape.linear_parameters < 0.1 * shape.parameters
    assert shape.weight_bytes(2, "4bit") > 0.9 * shape.weight_bytes(2)


def test_a_quantised_student_trains_adapters_in_bf16_as_trl_makes_them() -> None:
    plain, quantised = (work_of("--config", "lora", *more) for more in ((), ("--model.quantization", "4bit")))
    held, student = lines_of(quantised), plain.student
    assert held["student's weights"].bytes == student.weight_bytes(2, "4bit") < 1.4 * GB
    adapters = student.adapter_parameters(32, "all-linear")
    assert held["adapters"].bytes == held["gradients"].bytes == 2 * adapters
    assert held["optimizer state"].bytes == 4 * adapters
    assert "bf16 copies of the student's weights" not in held
    assert memory_of(quantised).peak < memory_of(plain).peak - 5 * GB


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config", "lora", "--model.quantization", "4bit", "--parallel", "fsdp2"], "not counted with fsdp2"),
        (["--config", "lora", "--model.quantization", "8bit", "--training.bf16", "false"], "with training.bf16: false"),
        (
            ["--config", "lora", "--model.quantization", "4bit", "--training.use_vllm", "true"],
            "not counted with training.use_vllm",
        ),
        (["--model.teacher_quantization", "8bit", "--parallel", "zero3"], "not counted with zero3"),
        ([*MATH, "--model.teachers.math.quantization", "4bit", "--parallel", "zero2"], r"math\.quantization: is not"),
        (["--model.quantization", "4bit"], r"give model\.lora"),
        (["--model.teacher_quantization", "8bit", "--training.shard_teacher", "true"], "is whole on each GPU"),
        ([*MATH, "--objective.name", "tip"], r"model\.teachers: objective 'tip'"),
    ],
)
def test_what_is_not_counted_or_not_trained_is_said(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        work_of(*words)


# ---- what is proposed ----------------------------------------------------------------------------------------------


def test_a_large_teacher_is_proposed_in_fewer_bits_or_served_and_train_takes_it_so() -> None:
    words = ["--config", "llm/one-gpu", "--gpus", "1x48", "--model.teacher", "Qwen/Qwen3-32B"]
    changes = advice.changes_to_fit(config_of(*words), 48 * GB)
    assert changes[-1].peak <= 48 * GB
    assert "model.teacher_quantization: 4bit" in [change.settings for change in changes]
    smaller = advice.changes_to_fit(config_of(*words), 20 * GB)
    (served,) = [change.settings for change in smaller if "http" in change.settings]
    assert served == "model.teacher: http://HOST:8000"
    words += ["--model.teacher_quantization", "8bit"]
    smaller = advice.changes_to_fit(config_of(*words), 20 * GB)
    (served,) = [change.settings for change in smaller if "http" in change.settings]
    assert served == "model.teacher: http://HOST:8000, model.teacher_quantization: null"
    typed = [word for part in served.split(", ") for word in (f"--{part.split(': ')[0]}", part.split(": ")[1])]
    assert not work_of(*words, *typed).teachers


def test_the_largest_of_several_teachers_is_made_smaller_first() -> None:
    config = config_of(*MATH, "--model.teachers.math.model", "Qwen/Qwen3-14B")
    before, work = copy.deepcopy(config), workload_of(config)
    proposals = list(advice._smaller_teachers(work))
    assert [next(iter(proposal.values)) for proposal in proposals] == [
        "model.teachers.math.quantization",
        "model.teachers.math.model",
        "model.teacher_quantization",
        "model.teacher",
    ]
    for proposal in proposals:
        changed = advice._sound(config, [proposal])
        assert changed is not None
        assert memory_of(changed[1]).peak < memory_of(work).peak
    assert config == before
