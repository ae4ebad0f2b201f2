"""A server that answers chat completions without a fault, and counts the requests that it holds at a time."""

import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GOOD = {
    "check": '{"verdict": "good", "reason": "It holds."}',
    "hints": '{"hints": ["Look at the terms.", "Combine them."]}',
}


class Server:
    """Answers chat completions after a random time, and integrates how many it holds.

    Args:
        limit: Requests that a client may have in flight.
        median: Of the time until an answer, in seconds; its logarithm has a standard deviation of 0.6.
    """

    def __init__(self, limit: int, median: float):
        self.limit, self.median, self.held, self.most = limit, median, 0, 0
        self.requests = 0
        self.area = self.area_at_last = 0.0
        self.changed = self.full_since = self.last_arrival = 0.0

    def step(self, change: int) -> None:
        now = time.monotonic()
        if self.full_since:
            self.area += self.held * (now - self.changed)
        self.held, self.changed = self.held + change, now
        self.most = max(self.most, self.held)
        if not self.full_since and self.held >= self.limit:
            self.full_since = now
        if change > 0:
            self.requests += 1
            self.last_arrival, self.area_at_last = now, self.area

    def report(self) -> dict[str, Any]:
        seconds = self.last_arrival - self.full_since
        share = self.area_at_last / seconds / self.limit if seconds else 0.0
        return {"requests": self.requests, "most": self.most, "seconds": seconds, "share": share}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = json.loads(await reader.readexactly(length))
            self.step(1)
            await asyncio.sleep(self.median * min(random.lognormvariate(0.0, 0.6), 8.0))
            self.step(-1)
            kind = "check" if body["messages"][0]["content"].startswith("You check") else "hints"
            message = {"role": "assistant", "content": GOOD[kind]}
            usage = {"prompt_tokens": 300, "completion_tokens": 20}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            data = json.dumps({"choices": [choice], "usage": usage}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
            writer.write(data)
            await writer.drain()
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


def serve(limit: int, median: float, ready: Any, stop: Any, results: Any) -> None:
    async def main() -> None:
        random.seed(0)
        server = Server(limit, median)
        listening = await asyncio.start_server(server.answer, "127.0.0.1", 0, backlog=512)
        ready.put(listening.sockets[0].getsockname()[1])
        await asyncio.to_thread(stop.wait)
        results.put(server.report())

    asyncio.run(main())


@contextmanager
def serving(limit: int, median: float) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """A server in a process of its own: its address, and a function that ends it and gives its report."""
    context = multiprocessing.get_context("spawn")
    ready, results, stop = context.Queue(), context.Queue(), context.Event()
    process = context.Process(target=serve, args=(limit, median, ready, stop, results))
    process.start()

    def report() -> dict[str, Any]:
        stop.set()
        found: dict[str, Any] = results.get()
        return found

    try:
        yield f"http://127.0.0.1:{ready.get()}/v1", report
    finally:
        stop.set()
        process.join()
