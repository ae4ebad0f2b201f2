"""A stand-in for the Hugging Face Hub on this machine, and the real command that talks to it."""

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.commands import Fork

TOKEN = "hf_aTokenThatNothingMayKeep"


class Hub:
    """What a hub was asked for. `refuses`: what it answers with 403, by a part of its path."""

    def __init__(self, refuses: str | None = None):
        self.refuses = refuses
        self.address = ""
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        """by repository and path"""
        self.deleted: list[str] = []
        self.tokens: set[str | None] = set()
        self.there: list[str] = []
        """paths in a repository before the push"""

    def answer(self, path: str, body: bytes) -> Any:
        words = path.strip("/").split("/")
        if words[-1] == "create":
            self.created.append(json.loads(body))
            made = self.created[-1]
            return {"url": f"{self.address}/{made['organization']}/{made['name']}"}
        repository, asked_for = "/".join(words[1:4]), words[4] if len(words) > 4 else ""
        if asked_for == "preupload":
            asked = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if asked_for == "tree":
            return [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in self.there]
        if asked_for == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[f"{repository}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    self.deleted.append(line["value"]["path"])
            return {"commitUrl": f"{self.address}/{'/'.join(words[2:4])}/commit/1", "commitOid": "1"}
        return {"id": "/".join(words[2:4]), "sha": "1", "siblings": [{"rfilename": path} for path in self.there]}


@contextmanager
def standing_in(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            refused = hub.refuses is not None and hub.refuses in path
            answer = json.dumps({"error": "no"} if refused else hub.answer(path, body)).encode()
            self.send_response(403 if refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def dopd_vl_at(hub: Hub, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`dopd-vl ARGUMENTS` with `HF_ENDPOINT` the stand-in."""
    return Fork(_command, hub.address, [str(a) for a in arguments], env={"HF_TOKEN": TOKEN}).result()


def _command(address: str, words: list[str]) -> int:
    from huggingface_hub import constants

    # Read from the environment when it was imported.
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = address, False
    from dopd_vl.cli import main

    return main(words)
