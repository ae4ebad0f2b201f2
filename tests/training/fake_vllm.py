"""vLLM of a few lines, for TRL's own client: it notes what it is asked, and answers as told.

`FakeVllm` is a server on 127.0.0.1, `FakeEngine` what TRL makes in the trainer's process. vLLM itself is not needed:
`trl_without_vllm` and `engines_of_trl` take away TRL's checks for it; weights stay in memory where NCCL
would hand them over.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from trl.generation import vllm_client, vllm_generation
from trl.trainer import distillation_trainer


class Asked(NamedTuple):
    path: str
    body: dict[str, Any]


class FakeVllm:
    """`answer` maps a prompt's token ids to a response's."""

    def __init__(self, answer: Callable[[list[int]], list[int]], weight_transfer: dict[str, str] | None):
        self.answer = answer
        self.weight_transfer = weight_transfer
        self.asked: list[Asked] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        """what each update brought"""
        self.refuses: str | None = None
        """a path that is answered with an error"""
        self.url = ""

    def of(self, path: str) -> list[dict[str, Any]]:
        return [asked.body for asked in self.asked if asked.path == path]

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": "student"}]}
        if path == "/server_info":
            return {"vllm_config": {"weight_transfer_config": self.weight_transfer}}
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/v1/completions":
            return {"choices": [self._choice(prompt) for prompt in body["prompt"]]}
        if path == "/inference/v1/generate":
            return {"choices": [self._choice(body["token_ids"])]}
        if path == "/v1/chat/completions/render":
            images = [part for message in body["messages"] for part in message["content"]]
            return {"features": {"mm_placeholders": {"image": [{"offset": 0, "length": 1} for _ in images]}}}
        return {"success": True}

    def _choice(self, prompt: list[int]) -> dict[str, Any]:
        return {"prompt_token_ids": prompt, "token_ids": self.answer(prompt), "logprobs": None}


@contextmanager
def serving(
    answer: Callable[[list[int]], list[int]], weight_transfer: dict[str, str] | None = None
) -> Iterator[FakeVllm]:
    fake = FakeVllm(answer, weight_transfer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self._answer(json.loads(self.rfile.read(length) or b"{}"))

        def _answer(self, body: dict[str, Any]) -> None:
            path = self.path.partition("?")[0]
            if self.command == "POST":
                fake.asked.append(Asked(path, body))
            refused = path == fake.refuses
            content = json.dumps({"error": "too long"} if refused else fake.reply(path, body)).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def trl_without_vllm(monkeypatch: pytest.MonkeyPatch, fake: FakeVllm) -> None:
    """Let TRL's client and trainer talk to `fake` from here."""
    for module in (vllm_client, vllm_generation, distillation_trainer):
        monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    join = vllm_client.VLLMClient.init_communicator

    def broadcast(iterator: Iterator[tuple[str, torch.Tensor]], **kwargs: Any) -> None:
        fake.weights.append({name: tensor.detach().clone() for name, tensor in iterator})

    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: join(self, "cuda"))
    monkeypatch.setattr(vllm_client, "get_ip", lambda: "127.0.0.1", raising=False)
    monkeypatch.setattr(vllm_client, "_HAS_STATEFUL_TRAINER_ENGINE", True)
    monkeypatch.setattr(vllm_client, "open_trainer_endpoint", lambda info: None, raising=False)
    monkeypatch.setattr(vllm_client, "packed_nccl_broadcast_producer", broadcast, raising=False)


class FakeEngine:
    """`vllm.LLM`, which puts an image's tokens in the place of each image token of a prompt: one a merged patch."""

    def __init__(self, answer: Callable[[list[int]], list[int]], image_token: int, pixels_a_token: int, settings: Any):
        self.answer, self.image_token, self.pixels_a_token = answer, image_token, pixels_a_token
        self.settings: dict[str, Any] = settings
        self.calls: list[str] = []
        self.prompts: list[list[int]] = []
        """as they were read, images in place"""
        self.llm_engine = self.model_executor = self.driver_worker = self.model_runner = self.model = self

    def generate(self, prompts: list[dict[str, Any]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self.calls.append("generate")
        read = [self._read(prompt) for prompt in prompts]
        assert all(len(ids) + sampling_params.max_tokens <= self.settings["max_model_len"] for ids in read)
        self.prompts += read
        answers = [SimpleNamespace(token_ids=self.answer(ids), logprobs=None) for ids in read]
        return [
            SimpleNamespace(prompt_token_ids=ids, outputs=[response])
            for ids, response in zip(read, answers, strict=True)
        ]

    def _read(self, prompt: dict[str, Any]) -> list[int]:
        shown = prompt.get("multi_modal_data", {}).get("image", [])
        images = iter(shown if isinstance(shown, list) else [shown])
        read: list[int] = []
        for token in prompt["prompt_token_ids"]:
            # As vLLM: no image is left for the second of an image's tokens.
            image = next(images) if token == self.image_token else None
            read += [token] * (image.width * image.height // self.pixels_a_token if image else 1)
        assert next(images, None) is None
        return read

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.calls += ["load_weights"] * (self.calls[-1:] != ["load_weights"])

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags[0]}")


def engines_of_trl(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[list[int]], list[int]], image_token: int, pixels_a_token: int
) -> list[FakeEngine]:
    """Let TRL make such engines in its own process; those that it has made."""
    made: list[FakeEngine] = []

    def make(**settings: Any) -> FakeEngine:
        made.append(FakeEngine(answer, image_token, pixels_a_token, settings))
        return made[-1]

    for module in (vllm_generation, distillation_trainer):
        monkeypatch.setattr(module, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", make, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # TRL sets them, and a later test's trainer must not find them
        monkeypatch.delenv(name)
    return made
