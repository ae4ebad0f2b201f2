"""A server that scores by vLLM's and SGLang's documented answers, with a small model by transformers, and misbehaves on
request. It is written from the protocols' documents, and shares no code with the client."""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

LONGEST_RESPONSE = 8
"""Tokens of the responses in tests that ask for many entries."""
Fault = Callable[["TeacherServer", str, Any], "tuple[int, Any] | bytes | None"]
"""Looks at a path and an answer that is about to be sent, which it may change; or gives a status and another value, or
bytes that are sent in place of it and the connection closed"""


class TeacherServer:
    """Serves a model folder on a free port until it is closed.

    Args:
        kind: "vllm" or "sglang".
        most_logprobs: vLLM's `--max-logprobs`.
        scale_out: vLLM's `--enable-scale-out`.
    """

    def __init__(
        self, folder: Path, kind: str = "vllm", most_logprobs: int = 128, scale_out: bool = True, port: int = 0
    ):
        config = AutoConfig.from_pretrained(folder)
        family: Any = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
        self.model = family.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.vocabulary = config.get_text_config().vocab_size
        self.image_token = getattr(config, "image_token_id", None)
        self.name, self.kind, self.most_logprobs, self.scale_out = folder.name, kind, most_logprobs, scale_out
        self.fault: Fault | None = None
        self.requests: list[tuple[str, Any]] = []
        self.held = self.most_held = 0
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, body: Any) -> None:
                with server._lock:
                    server.requests.append((self.path, body))
                    server.held += 1
                    server.most_held = max(server.most_held, server.held)
                try:
                    status, value = server.answer(self.path, body)
                    changed = server.fault(server, self.path, value) if server.fault else None
                    if isinstance(changed, tuple):
                        status, value = changed
                    data = changed if isinstance(changed, bytes) else json.dumps(value).encode()
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data) + isinstance(changed, bytes) * 10))
                    self.end_headers()
                    self.wfile.write(data)
                    if isinstance(changed, bytes):
                        self.close_connection = True
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with server._lock:
                        server.held -= 1

            def log_message(self, *args: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                """A client that went away."""

        self._http = Http(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def scored(self) -> list[Any]:
        """The bodies of the requests to score, the trials of the start among them."""
        return [
            body for path, body in self.requests if path in ("/v1/completions", "/inference/v1/generate", "/generate")
        ]

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.name, "object": "model"}]}
        if path == "/tokenize":
            return 200, {"tokens": self._tokens(body), "count": 0, "max_model_len": 4096}
        if self.kind == "sglang":
            if path == "/model_info":
                return 200, {"model_path": self.name, "is_generation": True}
            return (200, self._generate(body)) if path == "/generate" else (404, {"detail": "Not Found"})
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/v1/completions":
            return self._vllm(body["prompt"], [], body["prompt_logprobs"], completions=True)
        if path == "/inference/v1/generate" and self.scale_out:
            images = [part["url"] for part in body["content_parts"]]
            return self._vllm(body["token_ids"], images, body["sampling_params"]["prompt_logprobs"], completions=False)
        if path == "/inference/v1/generate":
            message = "Scale-out endpoints are disabled. Restart the server with --enable-scale-out."
            return 403, {"error": {"message": message, "type": "PermissionDeniedError", "code": 403}}
        return 404, {"detail": "Not Found"}

    def _tokens(self, body: Any) -> list[int]:
        if "messages" in body:
            options = body.get("chat_template_kwargs") or {}
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=body["add_generation_prompt"], **options
            )
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]

    def _vllm(self, ids: list[int], images: list[str], k: int, completions: bool) -> tuple[int, Any]:
        def refused(message: str) -> tuple[int, Any]:
            return 400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}

        if max(ids) >= self.vocabulary:
            return refused(f"Token id {max(ids)} is out of vocabulary")
        if k > self.most_logprobs:
            return refused(f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.most_logprobs}")
        ids, logp = self.score(ids, images)
        entries: list[Any] = [None]
        for left, (token, row) in zip(range(len(ids) - 1, 0, -1), zip(ids[1:], logp, strict=True), strict=True):
            # Of a prompt's tokens vLLM sends as many; nobody reads them, and it takes its time.
            values, tokens = row.topk(min(k, self.vocabulary) if left <= LONGEST_RESPONSE else 1)
            found = [(token, float(row[token]), int((row >= row[token]).sum()))]
            found += zip(tokens.tolist(), values.tolist(), range(1, k + 1), strict=False)
            entries.append({str(t): {"logprob": logp, "rank": rank, "decoded_token": "?"} for t, logp, rank in found})
        choice = {"index": 0, "finish_reason": "length", "token_ids": [0]}
        if completions:
            return 200, {"choices": [{**choice, "prompt_logprobs": entries, "prompt_token_ids": ids}]}
        return 200, {"choices": [choice], "prompt_logprobs": entries, "prompt_token_ids": ids}

    def _generate(self, body: Any) -> Any:
        ids, logp = self.score(body["input_ids"], body.get("image_data") or [])
        start, k = body["logprob_start_len"], body["top_logprobs_num"]
        own: list[Any] = [[None, ids[start], None]]
        top: list[Any] = [None]
        for token, row in list(zip(ids[1:], logp, strict=True))[start:]:
            values, tokens = row.topk(min(k, self.vocabulary))
            own.append([float(row[token]), token, None])
            top.append([[value, other, None] for value, other in zip(values.tolist(), tokens.tolist(), strict=True)])
        meta = {"prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": top}
        return {"text": "", "meta_info": meta}

    @torch.no_grad()
    def score(self, ids: list[int], images: list[str]) -> tuple[list[int], torch.Tensor]:
        """The ids with all pads, and log-probabilities `[n - 1, V]` of the next token."""
        inputs: dict[str, Any] = {}
        if images:
            pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in images]
            seen = self.processor.image_processor(images=pictures, return_tensors="pt")
            inputs = {"pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"]}
            pads = (inputs["image_grid_thw"].prod(-1) // self.processor.image_processor.merge_size**2).tolist()
            expanded: list[int] = []
            for token in ids:
                expanded += [token] * pads.pop(0) if token == self.image_token else [token]
            ids = expanded
            inputs["mm_token_type_ids"] = torch.tensor([[int(token == self.image_token) for token in ids]])
        with self._model_lock:
            for module in self.model.modules():
                if hasattr(module, "rope_deltas"):
                    module.rope_deltas = None
            logits = self.model(input_ids=torch.tensor([ids]), **inputs).logits[0, :-1]
        return ids, logits.float().log_softmax(-1)
