"""A vLLM server of a few lines on 127.0.0.1, for TRL's own client: it notes what it is asked, and answers as told.

vLLM itself is not needed: `trl_without_vllm` takes away TRL's checks for it, and hands weights over in memory where
NCCL would.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
