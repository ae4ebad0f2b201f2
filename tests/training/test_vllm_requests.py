"""What TRL's client asks a vLLM server for while a student trains, and what becomes of the answers.

vLLM is not needed: a server of a few lines stands in for it. `test_vllm.py` asks vLLM itself.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.models import image_token_ids
from dopd_vl.train_config import DataSettings, LoopSettings, ModelSettings, TrainConfig
from dopd_vl.training import checks
from dopd_vl.training.run import run_training
from tests.conftest import MakeTrainer
from tests.training.fake_vllm import FakeVllm, serving, trl_without_vllm

NCCL = {"backend": "nccl"}
END = 628
UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]


def answer(prompt: list[int]) -> list[int]:
    return [prompt[-1], len(prompt) % 600, END]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    with serving(answer, NCCL) as fake:
        trl_without_vllm(monkeypatch, fake)
        yield fake


def from_server(server: FakeVllm) -> dict[str, object]:
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "rollouts_to_keep": 4}


def test_the_server_is_sent_plain_prompts_alone_and_its_answers_are_the_rollouts(
    server: FakeVllm, make_trainer: MakeTrainer
) -> None:
    settings = {"num_generations": 2, "temperature": 0.7, "top_p": 0.9, "teacher_variant": "hints"}
    trainer = make_trainer("text", **settings, **from_server(server))
    trainer.train()
    (request,) = server.of("/v1/completions")
    kept = trainer.kept_rollouts
    plain = [trainer.views.view(rollout.example).prompt_ids for rollout in kept]
    privileged = [trainer.views.view(rollout.example, "hints").prompt_ids for rollout in kept]
    assert request["prompt"] == plain
    assert plain[0] == plain[1] != plain[2] == plain[3]
    assert not any(prompt in privileged for prompt in request["prompt"])
    hints = [hint for rollout in kept for hint in rollout.example["privileged"]["hints"]]
    sent = "\n".join(trainer.views.tokenizer.batch_decode(request["prompt"]))
    assert hints
    assert not any(hint in sent for hint in hints)
    drawn = {"n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert request.items() >= {**drawn, "max_tokens": 6, "logprobs": None}.items()
    assert [list(rollout.response) for rollout in kept] == [answer(prompt) for prompt in plain]


def test_the_student_is_brought_to_the_server_before_each_step(server: FakeVllm, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("text", max_steps=2, **from_server(server))
    first = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    paths = [asked.path for asked in server.asked]
    assert paths == ["/init_weight_transfer_engine", *2 * [*UPDATE, "/v1/completions"]]
    announced = server.of("/update_weights")[0]["update_info"]
    assert dict(zip(announced["names"], announced["shapes"], strict=True)) == {
        n: list(w.shape) for n, w in first.items()
    }
    for name, weight in first.items():
        assert torch.equal(server.weights[0][name], weight), name
    assert any(not torch.equal(server.weights[1][name], weight) for name, weight in first.items())


def test_images_go_to_the_server_without_the_text_and_no_response_may_hold_an_image_token(
    server: FakeVllm, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("vision", num_generations=2, teacher_variant="box_label", **from_server(server))
    trainer.train()
    views = [trainer.views.view(rollout.example) for rollout in trainer.kept_rollouts]
    shown = server.of("/v1/chat/completions/render")
    assert len(shown) == sum(bool(view.images) for view in views) > 0
    assert all(part["type"] == "image_url" for body in shown for part in body["messages"][0]["content"])
    asked = server.of("/inference/v1/generate")
    assert sorted(body["token_ids"] for body in asked) == sorted(view.prompt_ids for view in views)
    image = trainer.model.config.image_token_id
    for body in asked:
        where = body["features"]["mm_placeholders"]["image"]
        covered = [place for run in where for place in range(run["offset"], run["offset"] + run["length"])]
        assert covered == [place for place, token in enumerate(body["token_ids"]) if token == image]
        forbidden = {int(token) for token in body["sampling_params"]["logit_bias"]}
        assert forbidden == set(image_token_ids(trainer.model.config))


def train_config(models: Path, data: Path, output: Path, server: FakeVllm, **trl: object) -> TrainConfig:
    return TrainConfig(
        output_dir=str(output),
        model=ModelSettings(student=str(models / "text-student"), teacher=str(models / "text-teacher")),
        data=DataSettings(train=str(data)),
        training=LoopSettings(
            max_steps=1, per_device_train_batch_size=4, max_completion_length=6, use_vllm=True, rollouts_to_keep=4
        ),
        trl={"vllm_mode": "server", "vllm_server_base_url": server.url, "vllm_server_timeout": 0.0, **trl},
    )


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_device", lambda config: None)


def test_a_run_folder_holds_the_servers_rollouts(
    server: FakeVllm, on_a_gpu: None, nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    settings = train_config(nano_models, text_data, tmp_path / "run", server)
    run_training(settings, console=Console(quiet=True))
    (request,) = server.of("/v1/completions")
    rows = read_jsonl(tmp_path / "run" / "rollouts.jsonl")
    assert len(rows) == 4
    tokenizer = AutoTokenizer.from_pretrained(nano_models / "text-student")
    assert [row["response"] for row in rows] == [
        tokenizer.decode(answer(prompt), skip_special_tokens=True) for prompt in request["prompt"]
    ]


@pytest.mark.parametrize(
    ("weight_transfer", "refuses", "message"),
    [
        (None, None, r"takes no weights; start it with --weight-transfer-config"),
        (NCCL, "/server_info", r"refused a request|Request failed"),
        (NCCL, "/v1/completions", r"refused a request \(Request failed: 400.*too long.*--resume true"),
    ],
)
def test_a_server_that_does_not_take_part_is_told_of_in_one_line(
    server: FakeVllm,
    on_a_gpu: None,
    nano_models: Path,
    text_data: Path,
    tmp_path: Path,
    weight_transfer: dict[str, str] | None,
    refuses: str | None,
    message: str,
) -> None:
    server.weight_transfer, server.refuses = weight_transfer, refuses
    with pytest.raises(UserError, match=message) as raised:
        run_training(train_config(nano_models, text_data, tmp_path / "run", server), console=Console(quiet=True))
    assert "\n" not in str(raised.value)
    assert server.url in str(raised.value)


def test_a_server_that_is_not_there_is_told_of_before_anything_is_written(
    server: FakeVllm, on_a_gpu: None, nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    settings = train_config(nano_models, text_data, tmp_path / "run", server, vllm_server_base_url="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"vLLM server at http://127\.0\.0\.1:9 does not answer .*docs/vllm"):
        run_training(settings, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trl", "message"),
    [
        ({"vllm_mode": "serve"}, r"trl\.vllm_mode: unknown mode 'serve', did you mean 'server'"),
        ({"generation_kwargs": {"seed": 1}}, r"trl\.generation_kwargs\.seed: .*equal"),
    ],
)
def test_settings_that_vllm_cannot_draw_with_are_named(trl: dict[str, object], message: str) -> None:
    settings = TrainConfig(training=LoopSettings(use_vllm=True), trl=trl)
    with pytest.raises(ConfigurationError, match=message):
        checks.check(settings)


PAGE = Path(__file__).parents[2] / "docs" / "vllm-and-deepspeed.md"


def test_what_the_page_says_to_type_is_read_by_the_command() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    typed = [line for block in blocks for line in block.splitlines() if " -m dopd_vl.cli train " in line]
    assert len(typed) == 2
    for line in typed:
        arguments = shlex.split(line.partition(" -m dopd_vl.cli train ")[2])
        config = read_config(TrainConfig, arguments, "dopd-vl train")
        checks.check(config)
        assert config.training.use_vllm
        assert config.trl["vllm_mode"] == ("server" if "vllm_mode" in line else "colocate")
