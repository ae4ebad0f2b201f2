"""A generator behind an OpenAI-compatible endpoint: vLLM, SGLang and the vendors all speak it."""

from __future__ import annotations

import asyncio
import base64
import json
import reprlib
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from dopd_vl.common.errors import ConfigurationError, PrepareError
from dopd_vl.common.http import LEAST_SECRET, read_key, retry_after, spellings
from privileged.annotators.requests import Reply, Request, RequestRefused, Transient
from privileged.model_settings import ModelConfig
from privileged.records.images import StoredImage

if TYPE_CHECKING:
    import httpx2
    import openai

MAX_BODY = 8 * 1024 * 1024
"""Bytes of a response body, unpacked. A reply of `sampling.max_tokens` is far smaller; more is not read."""

MAX_ERROR_BODY = 64 * 1024
"""Bytes of the body of a response with an error status, unpacked: the rest is not read."""

FATAL = {401: "the key is wrong or missing", 402: "the account has no credit", 404: "no such model or address"}
TRANSIENT = (408, 409, 425, 429)
MAX_DETAIL = 300


class EndpointGenerator:
    """Sends chat completions. The key lives in the client alone, and is blotted out of whatever the server says."""

    def __init__(self, settings: ModelConfig):
        try:
            import httpx2
            import openai
        except ImportError as error:
            raise ConfigurationError(
                f"{settings.KEY}.kind: endpoint needs the openai client; pip install 'dopd-vl[annotate]'"
            ) from error
        self._settings, self.concurrency = settings, settings.concurrency
        self._key = read_key(settings.key_env, f"{settings.KEY}.key_env")
        self._spelt_key = None if self._key is None else spellings(self._key)
        limits = httpx2.Limits(
            max_connections=settings.concurrency + 8, max_keepalive_connections=settings.concurrency + 8
        )
        # Retries are ours: they obey the slots, the budget and the other requests' rate limits.
        self._client: openai.AsyncOpenAI = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=settings.url,
            max_retries=0,
            timeout=settings.timeout,
            default_headers={"Accept-Encoding": "identity"},
            # A server that is trusted with the questions and the key may not send them on to another.
            http_client=openai.DefaultAsyncHttpxClient(
                limits=limits, event_hooks={"response": [_bound_body]}, follow_redirects=False
            ),
        )

    def identity(self) -> dict[str, Any]:
        return {"kind": "endpoint", "model": self._settings.model, **self._settings.sampling.identity()}

    async def generate(self, request: Request) -> Reply:
        sampling = self._settings.sampling
        body = await self._send(
            chat_messages(request),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            extra_body=sampling.extra or None,
        )
        return self._read(body, request)

    async def _send(self, messages: list[dict[str, Any]], **options: Any) -> bytes:
        """The response's body; what went wrong is said as `Generator.generate` says it."""
        import httpx2
        import openai

        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._body(messages, options)
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
            raise Transient(f"no reply within {self._settings.timeout:g} s") from None
        except (openai.APIConnectionError, httpx2.RequestError) as error:
            reason = f"the connection to {self._settings.url} failed ({error.__cause__ or error!r})"
            unreachable = isinstance(error.__cause__ or error, httpx2.ConnectError)
            raise Transient(self._blot(reason), unreachable=unreachable) from None

    async def _body(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> bytes:
        body = bytearray()
        async with self._client.chat.completions.with_streaming_response.create(
            model=str(self._settings.model),
            messages=messages,  # type: ignore[arg-type]
            **options,
        ) as response:
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY:
                    raise RequestRefused(f"the response is longer than {MAX_BODY} bytes")
        return bytes(body)

    def _completion(self, body: bytes) -> Mapping[str, Any]:
        """The completion in a response body. A body that is none may be a proxy's page: it is tried again."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise Transient(f"the response is no JSON: {self._start_of(body)!r}") from None
        if not isinstance(value, Mapping) or not isinstance(value.get("choices"), list):
            raise Transient(f"the response is no chat completion: {self._start_of(body)!r}")
        return value

    def _read(self, body: bytes, request: Request) -> Reply:
        value = self._completion(body)
        choices = value["choices"]
        first = _mapping(choices[0] if choices else None)
        message = _mapping(first.get("message"))
        content = _storable(message["content"]) if isinstance(message.get("content"), str) else ""
        problem = None
        if not choices:
            problem = "the response has no choices"
        elif message.get("refusal"):
            refusal = message["refusal"]
            told = refusal if isinstance(refusal, str) else reprlib.repr(refusal)
            problem = f"the model refused: {self._blot(_storable(told))[:MAX_DETAIL]}"
        elif first.get("finish_reason") == "length":
            problem = f"the reply was cut off at {self._settings.sampling.max_tokens} tokens"
        elif first.get("finish_reason") == "content_filter":
            problem = "the reply was held back by a content filter"
        elif self._key is not None and len(self._key) >= LEAST_SECRET and self._blot(content) != content:
            problem, content = "the reply repeats the endpoint's key", self._blot(content)
        usage = _mapping(value.get("usage"))
        return Reply(
            content,
            _count(usage.get("prompt_tokens"), request.prompt_tokens()),
            _count(usage.get("completion_tokens"), len(content) // 3),
            problem,
        )

    def _status_error(self, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        detail = self._blot(" ".join(str(error.message).split()))[:MAX_DETAIL]
        if 300 <= status < 400:
            return PrepareError(
                f"{self._settings.KEY}.url: {self._settings.url} answered {status}: it sends on to another address, "
                "where nothing is sent; if that one is right, name it"
            )
        if status in FATAL:
            raise PrepareError(
                f"{self._settings.KEY}.url: {self._settings.url} answered {status}, {FATAL[status]}: {detail}"
            )
        if status in TRANSIENT or status >= 500:
            after = retry_after(error.response.headers)
            return Transient(f"the server answered {status}: {detail}", after, everyone=status in (429, 503))
        return RequestRefused(f"the server answered {status}: {detail}")

    def _start_of(self, body: bytes) -> str:
        """The key is blotted out before the cut: of one at the cut a part would stay."""
        return self._blot(body[:MAX_ERROR_BODY].decode("utf-8", "replace"))[:MAX_DETAIL]

    def _blot(self, text: str) -> str:
        """A text without the key, however it is spelt: what is read as JSON later must not give it back."""
        return text if self._spelt_key is None else self._spelt_key.sub("***", text)

    async def close(self) -> None:
        await self._client.close()


def chat_messages(request: Request) -> list[dict[str, Any]]:
    """A request as chat messages with images as data URLs."""

    def shown(stored: StoredImage) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_url(stored)}}

    # Plain text where there is no image: servers of text models often take nothing else.
    user: Any = request.content(shown) if request.images else request.user
    return [{"role": "system", "content": request.system}, {"role": "user", "content": user}]


def data_url(stored: StoredImage) -> str:
    """The bytes of an image as they are stored."""
    return f"data:{_media_type(stored.data)};base64,{base64.b64encode(stored.data).decode()}"


async def _bound_body(response: httpx2.Response) -> None:
    """A hook of the client: of any body no more is read and unpacked than the limit, and one byte that tells of it.

    The client itself reads the body of an error whole, and unpacks what it has read however often it is packed: 2.6 KB
    of gzip within gzip are gigabytes.
    """
    import httpx2

    limit = MAX_ERROR_BODY if response.is_error else MAX_BODY + 1
    packed = response.headers.pop("content-encoding", "identity").strip().lower()
    if packed not in ("identity", "gzip", "x-gzip", "deflate"):
        raise httpx2.DecodingError(f"the body is packed as {packed[:40]!r}, although plain text was asked for")

    class Start(httpx2.AsyncByteStream):
        def __init__(self, whole: httpx2.AsyncByteStream):
            self._whole = whole

        async def __aiter__(self) -> AsyncIterator[bytes]:
            unpacking = None if packed == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
            left = limit
            async for chunk in self._whole:
                try:
                    piece = chunk[:left] if unpacking is None else unpacking.decompress(chunk, left)
                except zlib.error as error:
                    raise httpx2.DecodingError(f"the body is no {packed}: {error}") from None
                yield piece
                left -= len(piece)
                if left <= 0:
                    return

        async def aclose(self) -> None:
            await self._whole.aclose()

    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = Start(response.stream)


def _storable(text: str) -> str:
    """JSON can hold half of a surrogate pair, which no file and no database takes: it becomes a question mark.

    >>> _storable("cut \\ud83d")
    'cut ?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def _media_type(data: bytes) -> str:
    """Of what `images.KEPT_FORMATS` can be."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if data.startswith(b"RIFF") else "image/jpeg"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any, estimate: int) -> int:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9
    return value if usable else estimate
