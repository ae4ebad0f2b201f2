"""Asks a generator: from the cache where it can, within the budget, with a limit of requests in flight and retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dopd_vl.common.errors import PrepareError
from privileged.annotators.cache import ReplyCache
from privileged.annotators.outage import OutageWatch
from privileged.annotators.requests import Asked, Generator, Reply, RequestRefused, Transient
from privileged.annotators.spending import Spending
from privileged.model_settings import ModelConfig

FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0
LONGEST_RETRY_AFTER = 600.0


class BudgetSpent(PrepareError):
    """The next request would go beyond the budget."""


class RequestFailed(Exception):
    """A request got no reply, for the reason in the message. Nothing was kept: a later run asks again."""


class Asker:
    """All of its coroutines run in one event loop. `say` is told once, when the first request has to be repeated."""

    def __init__(self, generator: Generator, cache: ReplyCache, settings: ModelConfig, say: Callable[[str], None]):
        self._generator, self._cache, self._settings, self._say = generator, cache, settings, say
        self._has_repeated = self._was_reached = False
        self._identity = generator.identity()
        self.concurrency = generator.concurrency
        self._slots = asyncio.Semaphore(generator.concurrency)
        self._under_way: dict[str, asyncio.Future[Reply]] = {}
        self._changed = asyncio.Condition()
        self._disk = ThreadPoolExecutor(1, "replies")
        self._not_before = 0.0
        self.outage = OutageWatch(settings.KEY)
        self.spending = Spending(settings.budget, *cache.spent())

    async def ask(self, request: Asked) -> Reply:
        """The reply to a request, committed to the cache before this returns.

        Raises:
            RequestFailed: no reply, after all retries.
            BudgetSpent: it was not sent.
            PrepareError: the endpoint cannot be used at all.
        """
        key = request.key(self._identity)
        if (same := self._under_way.get(key)) is not None:  # another record asks the very same thing now
            return await asyncio.shield(same)
        if (known := self._cache.find(key)) is not None:
            return known
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            reply = await self._with_budget(key, request)
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else RequestFailed("stopped"))
            future.exception()  # seen: nobody else need be waiting for it
            raise
        else:
            future.set_result(reply)
            return reply
        finally:
            del self._under_way[key]

    async def _with_budget(self, key: str, request: Asked) -> Reply:
        size = request.prompt_tokens(), self._settings.sampling.max_tokens
        async with self._changed:
            while not self.spending.admits(*size):
                if not self.spending.reserved_reply:
                    raise BudgetSpent(
                        f"{self._settings.KEY}.budget: {self.spending} are spent, and the next request may cost "
                        f"{sum(size):,} tokens more; raise the budget and run the same command again"
                    )
                await self._changed.wait()  # those in flight may cost less than they may at most
            self.spending.reserve(*size)
        try:
            return await self._with_retries(key, request)
        finally:
            self.spending.release(*size)
            async with self._changed:
                self._changed.notify_all()

    async def _with_retries(self, key: str, request: Asked) -> Reply:
        self.outage.starts()
        try:
            reply = await self._tried(key, request)
        except RequestFailed as error:
            reason = str(error)
        else:
            self.outage.succeeded()
            return reply
        finally:
            self.outage.ends()
        await self.outage.failed(reason)
        raise RequestFailed(reason)

    async def _tried(self, key: str, request: Asked) -> Reply:
        for attempt in range(self._settings.retries + 1):
            try:
                reply = await self._once(key, request)
                self._was_reached = True
                return reply
            except RequestRefused as error:
                self._was_reached = True
                raise RequestFailed(str(error)) from None
            except Transient as error:
                last = str(error)
                self._was_reached |= not error.unreachable
                if attempt < self._settings.retries:
                    if not self._has_repeated:  # pauses add up to a minute, in which nothing else would be heard
                        self._has_repeated = True
                        self._say(
                            f"{self._settings.KEY}: {last}; each request is tried {self._settings.retries + 1} times"
                        )
                    await self._back_off(attempt, error)
        if not self._was_reached:  # no fault of the record
            raise PrepareError(
                f"{self._settings.KEY}.url: {last}, {self._settings.retries + 1} times, and no request has reached it "
                "yet; start the server or mend the address, and run the same command again"
            )
        raise RequestFailed(f"{last} (tried {self._settings.retries + 1} times)")

    async def _once(self, key: str, request: Asked) -> Reply:
        while True:
            if (pause := self._not_before - time.monotonic()) > 0:
                # A little apart, so that not all come at once when the server opens again.
                await asyncio.sleep(pause * random.uniform(1.0, 1.1))
            async with self._slots:
                if self._not_before <= time.monotonic():  # a rate limit may have come while this one queued
                    reply = await self._generator.generate(request)
                    # Kept before the slot is free: a kill costs no more replies than may be in flight.
                    await self._keep(key, reply)
                    return reply

    async def _keep(self, key: str, reply: Reply) -> None:
        self.spending.pay(reply.prompt_tokens, reply.reply_tokens)
        kept = asyncio.get_running_loop().run_in_executor(self._disk, self._cache.add, key, reply)
        await asyncio.shield(kept)  # it was paid for: also when the run is stopped in this moment

    async def _back_off(self, attempt: int, error: Transient) -> None:
        """Wait without holding a slot. What a server that is overrun asks for holds for every request."""
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1.0)
        if error.retry_after is not None:
            wanted = min(error.retry_after, LONGEST_RETRY_AFTER)
            if error.everyone:
                self._not_before = max(self._not_before, time.monotonic() + wanted)
            delay = wanted * random.uniform(1.0, 1.1)
        await asyncio.sleep(delay)

    async def close(self) -> None:
        self._disk.shutdown(wait=True)
        await self._generator.close()
