"""Tells a bad record from an endpoint that is gone, before a failed request costs its record."""

from __future__ import annotations

import asyncio

from dopd_vl.common.errors import PrepareError

FAILURES_ALLOWED = 20
"""So many requests that fail one after another, with not one reply between them, mean that the endpoint is gone."""

SETTLE_SECONDS = 0.05


class OutageWatch:
    """Holds back each failure until a reply shows that the endpoint lives, or too many failures that it does not.

    Without it, the first records of an outage would be set aside and committed before the outage is noticed.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._failures = 0
        self._held: asyncio.Future[None] | None = None
        self._active = 0
        self._feeding = True

    def starts(self) -> None:
        self._active += 1

    def ends(self) -> None:
        self._active -= 1
        self._look_again_soon()

    def feeding(self, more: bool) -> None:
        """Whether further requests may come although none ends."""
        self._feeding = more
        self._look_again_soon()

    def succeeded(self) -> None:
        self._failures = 0
        self._release()

    async def failed(self, reason: str) -> None:
        """Returns once it is clear that only this request is bad.

        Raises:
            PrepareError: the endpoint is gone.
        """
        self._failures += 1
        if self._held is None:
            self._held = asyncio.get_running_loop().create_future()
        held = self._held
        if self._failures >= FAILURES_ALLOWED and not held.done():
            held.set_exception(
                PrepareError(
                    f"{self._key}: {self._failures} requests failed one after another, the last one so: {reason}; "
                    "what was answered is kept, mend the cause and run the same command again"
                )
            )
        self._look_again_soon()
        await asyncio.shield(held)

    def _look_again_soon(self) -> None:
        # Not at once: a task that was just made has not sent its first request yet.
        if self._held is not None:
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if not self._feeding and self._active == 0:  # nobody is left who could tell
            self._release()

    def _release(self) -> None:
        if self._held is not None and not self._held.done():
            self._held.set_result(None)
            self._held = None
