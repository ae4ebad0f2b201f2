"""AutoLogi's questions are asked of a server: each once, kept as they come, tried again where that helps."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.harnesses import autologi_responses
from dopd_vl.harnesses.autologi_responses import ResponsesConfig, ask_all, main


class Server(ThreadingHTTPServer):
    """Answers with the prompt, in capitals, and fails as often as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.failures: list[int] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = self.server.failures.pop() if self.server.failures else 200
        if code == 200:
            self.server.asked.append(body)
        text = body["messages"][0]["content"].upper()
        reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(autologi_responses.time, "sleep", lambda seconds: None)
    running = Server()
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def config_of(folder: Path, server: Server, **settings: Any) -> ResponsesConfig:
    rows = [{"idx": n, "prompt": f"puzzle {n} a\u2028b", "code": {"x": "y"}, "lang": "en"} for n in range(1, 8)]
    (folder / "AutoLogi_en.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return ResponsesConfig(
        questions=str(folder / "AutoLogi_en.jsonl"),
        output=str(folder / "responses_en.jsonl"),
        model="m",
        api_url=f"http://127.0.0.1:{server.server_port}/v1/",
        concurrency=3,
        **settings,
    )


def test_every_question_comes_with_its_own_response_in_its_place(tmp_path: Path, server: Server) -> None:
    sampling = {"temperature": 0.7, "top_k": 20, "max_new_tokens": 99}
    ask_all(config_of(tmp_path, server, sampling=sampling))
    rows = read_jsonl(tmp_path / "responses_en.jsonl")
    assert [(row["idx"], row["gen"]) for row in rows] == [(n, [f"PUZZLE {n} A\u2028B"]) for n in range(1, 8)]
    assert rows[0]["code"] == {"x": "y"}
    body = server.asked[0]
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.7, 20, 99)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_was_answered_is_not_asked_again(tmp_path: Path, server: Server) -> None:
    config = config_of(tmp_path, server)
    kept = tmp_path / "responses_en.partial.jsonl"
    kept.write_text('{"number": 2, "response": "kept"}\n{"number": 3, "resp')
    ask_all(config)
    assert len(server.asked) == 6
    assert read_jsonl(tmp_path / "responses_en.jsonl")[2]["gen"] == ["kept"]


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.failures = [429, 503, 500]
    ask_all(config_of(tmp_path, server))
    assert len(server.asked) == 7
    (tmp_path / "responses_en.partial.jsonl").unlink()
    server.failures = [400] * 7
    with pytest.raises(UserError, match=r"does not answer \(HTTP 400"):
        ask_all(config_of(tmp_path, server))
    arguments = ["--questions", "nowhere", "--output", "x", "--model", "m"]
    assert main(arguments) == 2
    assert "error: questions: no file nowhere" in capsys.readouterr().err


def test_a_trial_asks_the_first_questions(tmp_path: Path, server: Server) -> None:
    ask_all(config_of(tmp_path, server, limit=2))
    assert [row["idx"] for row in read_jsonl(tmp_path / "responses_en.jsonl")] == [1, 2]
