"""One question to a generator, and its reply."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dopd_vl.common.digests import digest_json
from privileged.records.images import StoredImage

CHARACTERS_IN_TOKEN = 3.5
PIXELS_IN_TOKEN = 32 * 32
TOKENS_AROUND = 20
"""For estimates. Qwen3-VL makes one token of 32 x 32 pixels; English and LaTeX have 3 to 4 characters to a token, other
scripts fewer; a chat template adds about 20 tokens."""


@dataclass(frozen=True)
class Request:
    """What is asked: a system text, a user text and the images that stand before it.

    `question` is the record's own question, for detectors.
    """

    system: str
    user: str
    images: tuple[StoredImage, ...]
    seed: int
    question: str = ""

    def key(self, generator: Mapping[str, Any]) -> str:
        """Equal for requests that mean the same to the same generator: model, texts, image bytes, sampling."""
        images = [hashlib.sha256(stored.data).hexdigest() for stored in self.images]
        return digest_json([dict(generator), self.system, self.user, images, self.seed])

    def content(self, shown: Callable[[StoredImage], dict[str, Any]]) -> list[dict[str, Any]]:
        """Images and user text as the parts of a chat message; several images are told apart by a number before each.

        Args:
            shown: Makes the part of an image.
        """
        parts = []
        for number, stored in enumerate(self.images, start=1):
            if len(self.images) > 1:
                parts.append({"type": "text", "text": f"Image {number}:"})
            parts.append(shown(stored))
        return [*parts, {"type": "text", "text": self.user}]

    def prompt_tokens(self) -> int:
        """An estimate of the prompt's length."""
        return estimated_tokens([self.system, self.user], self.images)


def estimated_tokens(texts: Iterable[str], images: Iterable[StoredImage]) -> int:
    """Of a prompt with these texts and images."""
    pixels = sum(stored.size[0] * stored.size[1] for stored in images)
    characters = sum(map(len, texts))
    return TOKENS_AROUND + round(characters / CHARACTERS_IN_TOKEN + pixels / PIXELS_IN_TOKEN)


@dataclass(frozen=True)
class Reply:
    """What came back. `problem` says why the text cannot be used although it was paid for (cut off, refused)."""

    text: str
    prompt_tokens: int
    reply_tokens: int
    problem: str | None = None


class Asked(Protocol):
    """What can be asked of a generator: a `Request`, or a judge's `AnswerRequest`."""

    def key(self, generator: Mapping[str, Any], /) -> str: ...

    def prompt_tokens(self) -> int: ...


class Generator(Protocol):
    """Makes replies: an endpoint, a local model, a detector, or what scores answers."""

    concurrency: int

    def identity(self) -> dict[str, Any]:
        """All that a reply depends on beside the request, as plain JSON values."""
        ...

    async def generate(self, request: Any, /) -> Reply:
        """One reply to what it takes, a `Request` or an `AnswerRequest`.

        Raises:
            Transient: to be tried again later.
            RequestRefused: this request fails for good, others need not.
            PrepareError: nothing can be asked, for instance because the key is wrong.
        """
        ...

    async def close(self) -> None: ...


class Transient(Exception):
    """A request may succeed later. `retry_after` is what the server asked for, in seconds; `unreachable`: there was no
    server to be asked."""

    def __init__(
        self, reason: str, retry_after: float | None = None, everyone: bool = False, unreachable: bool = False
    ):
        super().__init__(reason)
        self.retry_after, self.everyone, self.unreachable = retry_after, everyone, unreachable


class RequestRefused(Exception):
    """A request that would fail however often it is sent."""
