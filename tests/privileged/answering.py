"""A real HTTP server that answers chat completions, and misbehaves where it is told to."""

import functools
import gzip
import hashlib
import json
import threading
import time
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PARTS = {
    "You write step-wise hints": "hints",
    "You write the worked-out steps": "hints_executed",
    "You write one short hint": "hint_summary",
    "You describe the picture": "caption",
    "You find the objects": "boxes",
    "You write one misleading hint": "wrong_hint",
}


class Answering:
    """Counts requests by body. `fault(part, body, seen)` names a fault for a request that came `seen` times before."""

    def __init__(self, fault=lambda part, body, seen: None, delay=0.0):
        self.fault, self.delay = fault, delay
        self.lock = threading.Lock()
        self.bodies = []
        self.answered = []
        self.headers = []
        self.in_flight = self.most_in_flight = 0
        self.error_bytes = 0
        self.elsewhere = ""

    @contextmanager
    def serving(self):
        server = _Server(("127.0.0.1", 0), _Handler)
        server.answering = self
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()


def part_of(body):
    system = body["messages"][0]["content"]
    return next((part for start, part in PARTS.items() if system.startswith(start)), "check")


def text_of(body):
    content = body["messages"][1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def mark(raw):
    """A word that tells one request body from another: letters only, so that no answer can be in it."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in hashlib.sha256(raw).hexdigest()[:12])


def good_text(part, raw):
    word = mark(raw)
    return {
        "hints": json.dumps({"hints": [f"Look for {word}.", "Go on from there."]}),
        "hints_executed": json.dumps({"hints": [f"Here is {word}."]}),
        "hint_summary": json.dumps({"hint": f"Think of {word}."}),
        "caption": json.dumps({"caption": f"A picture of {word}."}),
        "boxes": json.dumps([{"bbox_2d": [100, 200, 500, 600], "label": word}]),
        "wrong_hint": json.dumps({"hint": f"Ignore {word}."}),
        "check": json.dumps({"verdict": "good", "reason": "It holds."}),
    }[part]


def completion(text, finish="stop", **message):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}


USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


@functools.cache
def packed(times):
    """Half a gigabyte of zeros, in gzip within gzip."""
    packing, piece = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16), bytes(2**20)
    data = b"".join(packing.compress(piece) for _ in range(512)) + packing.flush()
    return data if times == 1 else gzip.compress(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        """Clients that are killed in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_POST(self):
        answering = self.server.answering
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        part = part_of(body)
        with answering.lock:
            seen = answering.bodies.count(raw)
            answering.bodies.append(raw)
            answering.headers.append(dict(self.headers))
            answering.in_flight += 1
            answering.most_in_flight = max(answering.most_in_flight, answering.in_flight)
        try:
            fault = answering.fault(part, body, seen)
            if answering.delay:
                time.sleep(answering.delay)
            self._answer(fault, part, raw)
        finally:
            with answering.lock:
                answering.in_flight -= 1

    def _answer(self, fault, part, raw):
        good = completion(good_text(part, raw))
        if isinstance(fault, bytes):
            self._send(200, fault)
        elif fault is None:
            with self.server.answering.lock:
                self.server.answering.answered.append(raw)
            self._send(200, good)
        elif isinstance(fault, dict):  # the response itself
            self._send(200, fault)
        elif isinstance(fault, int):
            headers = {"Retry-After": "0.1"} if fault == 429 else {}
            self._send(fault, {"error": {"message": f"fault, your key is {self.headers['Authorization']}"}}, headers)
        elif fault == "slow":
            time.sleep(2.5)
            self._send(200, good)
        elif fault == "cut":
            data = json.dumps(good).encode()
            self._head(200, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "not JSON":
            self._send(200, "<html>502</html>")
        elif fault == "no choices":
            self._send(200, {**good, "choices": []})
        elif fault == "refusal":
            self._send(200, completion(None, refusal="I would rather not."))
        elif fault == "length":
            self._send(200, completion('{"hints": ["Begin', finish="length"))
        elif fault == "huge":
            self._send(200, completion("x" * 9_000_000))
        elif fault == "half a sign":
            self._send(200, json.dumps(completion("@")).replace("@", '{\\"hints\\": [\\"Cut \\ud83d\\"]}'))
        elif fault == "no gzip":
            self._send(200, good, {"Content-Encoding": "gzip"})
        elif fault == "gzip":
            self._send(200, gzip.compress(json.dumps(good).encode()), {"Content-Encoding": "gzip"})
        elif isinstance(fault, tuple):  # a status, and how often half a gigabyte is packed
            status, times = fault
            self._send(status, packed(times), {"Content-Encoding": ", ".join(["gzip"] * times)})
        elif fault == "elsewhere":
            self._send(307, "", {"Location": self.server.answering.elsewhere})
        elif fault == "endless error":
            self._endless_error()
        elif fault == "a key at the cut":
            self._send(200, "x" * 290 + self.headers["Authorization"].removeprefix("Bearer "))
        elif fault == "repeats the key":
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self._send(200, completion(json.dumps({"hints": [f"Look at {key} here."]})))
        elif fault == "repeats the key in escapes":
            key = self.headers["Authorization"].removeprefix("Bearer ")
            spelt = "".join(f"\\u{ord(sign):04x}" for sign in key)
            self._send(200, completion(f'{{"hints": ["Look at {spelt} here."]}}'))
        elif fault == "long":
            self._send(200, completion(json.dumps({"hints": ["y" * 150_000]})))
        else:  # any other text is the reply itself
            self._send(200, completion(fault))

    def _endless_error(self):
        """A gigabyte, unless the client hangs up before; how much was written is kept."""
        self._head(500, 2**30)
        piece, answering = b"x" * 2**16, self.server.answering
        self.close_connection = True
        try:
            for _ in range(2**14):
                self.wfile.write(piece)
                answering.error_bytes += len(piece)
        except OSError:
            pass

    def _send(self, status, value, headers=None):
        text = value if isinstance(value, (str, bytes)) else json.dumps(value)
        data = text.encode() if isinstance(text, str) else text
        self._head(status, len(data), headers)
        self.wfile.write(data)

    def _head(self, status, length, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
