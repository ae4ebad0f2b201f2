"""What vLLM and SGLang are asked for the log-probabilities of a response's tokens, and what their answers say of them.

A prompt is sent as its token ids, as the view has them, with the response's ids behind; nothing is tokenised again. Of
an image the ids hold one pad and the pixels come beside, as the view holds them: resized already, to multiples of a
merged patch, which the server's own processor leaves as they are. Both servers put as many pads in as the image takes.

Answers hold one entry a token of the prompt and the response. The response's are taken from the end, and each has to
name the token that it is of.

vLLM's answers are those of 0.32, which a test asks where it is installed; SGLang's those of the sources of 0.5.23
(srt/managers/io_struct.py, tokenizer_manager.py), and were never tried.
"""

import base64
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from dopd_vl.served.server import BadAnswer, RequestRefused, Server

BYTES_AN_ENTRY = 160
"""Of one token's log-probability in an answer at most, its text and rank beside it."""


@dataclass(frozen=True)
class Question:
    """A prompt and a response whose tokens are to be scored."""

    prompt_ids: Sequence[int]
    """as the view has them, each image's pads in full"""
    response_ids: Sequence[int]
    images: Sequence[Image.Image] = field(default=())
    """in the order of the prompt, resized as the model is to see them"""
    image_token: int | None = None
    """the id of a pad"""

    @property
    def ids(self) -> list[int]:
        return [*self.prompt_ids, *self.response_ids]

    def with_one_pad_an_image(self) -> list[int]:
        """The ids as servers take them, which put an image's other pads in themselves.

        Raises:
            ValueError: runs of pads and images differ in number.
        """
        return [*with_one_pad_an_image(self.prompt_ids, len(self.images), self.image_token), *self.response_ids]

    def data_urls(self) -> list[str]:
        """The images as PNG, which loses nothing."""
        urls = []
        for image in self.images:
            file = io.BytesIO()
            image.save(file, "PNG", compress_level=1)
            urls.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
        return urls


def with_one_pad_an_image(prompt_ids: Sequence[int], images: int, image_token: int | None) -> list[int]:
    """A prompt for vLLM or SGLang, which put each image's tokens in by themselves, one pad an image.

    A view has as many as the image takes; an image's tokens would be put in the place of every one of them.

    Raises:
        ValueError: the runs, which others stand between, are not as many as its images.
    """
    before = [None, *prompt_ids[:-1]]
    kept = [token for token, last in zip(prompt_ids, before, strict=True) if not token == last == image_token]
    runs = 0 if image_token is None else kept.count(image_token)
    if runs != images:
        raise ValueError(f"{runs} runs of image tokens in a prompt with {images} images")
    return kept


class Answer(NamedTuple):
    """Of n response tokens, in nats; k entries each, likeliest first."""

    logp: np.ndarray
    """`[n]` float64, of the tokens themselves"""
    top_ids: np.ndarray
    """`[n, k]` int64"""
    top_logp: np.ndarray
    """`[n, k]` float64"""


class ServerProtocol(Protocol):
    """How one kind of server is asked. Every method raises what `Server.ask` raises, and BadAnswer."""

    name: str

    def score(self, server: Server, model: str, question: Question, top_k: int) -> Answer: ...

    def tokenize(self, server: Server, model: str, text: str) -> list[int] | None:
        """The ids of a text; None where the server does not say."""
        ...

    def chat_ids(self, server: Server, model: str, messages: list[dict[str, Any]], options: Any) -> list[int] | None:
        """The ids of messages in the server's own chat template; None where the server does not say."""
        ...


class Vllm:
    """vLLM: `/v1/completions` for texts, `/inference/v1/generate` (with `--enable-scale-out`) for images."""

    name = "vllm"

    def score(self, server: Server, model: str, question: Question, top_k: int) -> Answer:
        most = _most(len(question.ids), top_k)
        if question.images:
            body: dict[str, Any] = {
                "model": model,
                "token_ids": question.with_one_pad_an_image(),
                "content_parts": [{"type": "image_url", "url": url} for url in question.data_urls()],
                "sampling_params": {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": top_k},
                "return_token_ids": True,
            }
            path = "/inference/v1/generate"
        else:
            body = {
                "model": model,
                "prompt": question.ids,
                "max_tokens": 1,
                "temperature": 1.0,
                "prompt_logprobs": top_k,
                "return_token_ids": True,
                "add_special_tokens": False,
            }
            path = "/v1/completions"
        return server.ask(path, body, most, lambda answer: self._read(answer, question, top_k))

    def _read(self, value: Any, question: Question, top_k: int) -> Answer:
        answer = _mapping(value)
        if not question.images:
            answer = _mapping(_first(answer.get("choices"), "choice"))
        read = answer.get("prompt_token_ids")  # a pad too many or too few is read without an error
        if read != question.ids and (read is not None or question.images):
            raise BadAnswer(_other_ids(read, question))
        entries = _as_long_as(answer.get("prompt_logprobs"), question.ids, "prompt_logprobs")
        return _of_mappings(entries[len(question.prompt_ids) :], question.response_ids, top_k)

    def tokenize(self, server: Server, model: str, text: str) -> list[int] | None:
        return _tokens(server, {"model": model, "prompt": text, "add_special_tokens": False})

    def chat_ids(self, server: Server, model: str, messages: list[dict[str, Any]], options: Any) -> list[int] | None:
        body = {"model": model, "messages": messages, "add_generation_prompt": True, "chat_template_kwargs": options}
        return _tokens(server, body)


class Sglang:
    """SGLang: `/generate`, which takes texts and images."""

    name = "sglang"

    def score(self, server: Server, model: str, question: Question, top_k: int) -> Answer:
        body: dict[str, Any] = {
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "top_logprobs_num": top_k,
        }
        if question.images:
            body |= {"input_ids": question.with_one_pad_an_image(), "image_data": question.data_urls()}
            body["logprob_start_len"] = 0  # the pads are yet to be put in: where the response begins is not known
        else:
            body |= {"input_ids": question.ids, "logprob_start_len": len(question.prompt_ids) - 1}
        most = _most(len(question.ids), top_k)
        return server.ask("/generate", body, most, lambda answer: self._read(answer, question, top_k))

    def _read(self, value: Any, question: Question, top_k: int) -> Answer:
        answer = _mapping(_mapping(value).get("meta_info"))
        wanted, read = len(question.ids), answer.get("prompt_tokens")
        if read is not None and read != wanted:
            raise BadAnswer(f"it read {read} tokens where {wanted} were meant{_of_images(question)}")
        own = _last(answer.get("input_token_logprobs"), question.response_ids, "input_token_logprobs")
        top = _last(answer.get("input_top_logprobs"), question.response_ids, "input_top_logprobs") if top_k else own
        mappings = []
        for place, (mine, others) in enumerate(zip(own, top, strict=True)):
            logp, token = _pair(mine, place)
            entries = {token: logp}
            for entry in others if top_k else ():
                logp, other = _pair(entry, place)
                entries[other] = logp
            mappings.append(entries)
        return _of_mappings(mappings, question.response_ids, top_k)

    def tokenize(self, server: Server, model: str, text: str) -> list[int] | None:
        return _tokens(server, {"model": model, "prompt": text, "add_special_tokens": False})

    def chat_ids(self, server: Server, model: str, messages: list[dict[str, Any]], options: Any) -> list[int] | None:
        return None


PROTOCOLS: dict[str, ServerProtocol] = {"vllm": Vllm(), "sglang": Sglang()}


def _tokens(server: Server, body: Mapping[str, Any]) -> list[int] | None:
    try:
        tokens = _mapping(server.ask("/tokenize", body)).get("tokens")
    except RequestRefused as error:
        if error.status in (404, 405, 422, 501):  # a server without it, or with another one of that name
            return None
        raise
    return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None


def _of_mappings(entries: Sequence[Any], ids: Sequence[int], top_k: int) -> Answer:
    """Entries of response tokens, each a mapping of tokens to log-probabilities that begins with the token itself."""
    logp = np.empty(len(ids))
    top_ids = np.empty((len(ids), top_k), dtype=np.int64)
    top_logp = np.empty((len(ids), top_k))
    for place, (entry, token) in enumerate(zip(entries, ids, strict=True)):
        if not isinstance(entry, Mapping) or not entry:
            raise BadAnswer(f"response token {place} has no log-probability")
        tokens, values = _numbers(entry)
        if tokens[0] != token:
            raise BadAnswer(
                f"response token {place} is {token}, and what stands there is of {tokens[0]}: the answer is aligned to "
                "another text"
            )
        if not (np.isfinite(values).all() and (values <= MOST_LOGP).all()):
            raise BadAnswer(f"response token {place} has log-probabilities that are none, as {values[0]}")
        if tokens.min() < 0:
            raise BadAnswer(f"response token {place} has an entry of {tokens.min()}, which is no id")
        if len(tokens) not in (top_k, top_k + 1):
            raise BadAnswer(f"response token {place} has {len(tokens)} entries, and {top_k} were asked for")
        likeliest = np.argsort(-values, kind="stable")[:top_k]
        logp[place], top_ids[place], top_logp[place] = values[0], tokens[likeliest], values[likeliest]
    if top_k and np.exp(top_logp).sum(-1).max(initial=0.0) > MOST_MASS:
        raise BadAnswer("log-probabilities of a token add up to more than one")
    return Answer(np.minimum(logp, 0.0), top_ids, np.minimum(top_logp, 0.0))


MOST_LOGP, MOST_MASS = 1e-3, 1.01
"""More than rounding adds to a log-probability of 0 and to a mass of 1."""


def _numbers(entry: Mapping[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of an entry."""
    try:  # a step has millions of them
        tokens, values = [*map(int, entry)], [one["logprob"] for one in entry.values()]
        if set(map(type, values)) == {float}:
            return np.array(tokens, dtype=np.int64), np.array(values)
    except (TypeError, ValueError, KeyError, OverflowError):
        pass
    found = [(_token(key), _logp(value)) for key, value in entry.items()]
    return np.array([token for token, _ in found], dtype=np.int64), np.array([logp for _, logp in found])


def _token(key: Any) -> int:
    try:
        token = int(key)
    except (TypeError, ValueError):
        token = -1
    if not 0 <= token < 1 << 31:
        raise BadAnswer(f"a token is {str(key)[:40]!r}, which is no id")
    return token


def _logp(value: Any) -> float:
    value = value.get("logprob") if isinstance(value, Mapping) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > sys.float_info.max:
        raise BadAnswer(f"a log-probability is {str(value)[:40]!r}")
    return float(value)


def _pair(entry: Any, place: int) -> tuple[Any, int]:
    """SGLang's (log-probability, id, text)."""
    if not isinstance(entry, Sequence) or len(entry) < 2:
        raise BadAnswer(f"response token {place} has no log-probability")
    return entry[0], _token(entry[1])


def _as_long_as(entries: Any, ids: Sequence[int], what: str) -> Sequence[Any]:
    if not isinstance(entries, list) or len(entries) != len(ids):
        count = f"{len(entries)} entries" if isinstance(entries, list) else "none"
        raise BadAnswer(f"{what} has {count} for {len(ids)} tokens")
    return entries


def _last(entries: Any, ids: Sequence[int], what: str) -> Sequence[Any]:
    """The entries of the response, which come last; one at least stands before them."""
    if not isinstance(entries, list) or len(entries) <= len(ids):
        count = f"{len(entries)} entries" if isinstance(entries, list) else "none"
        raise BadAnswer(f"{what} has {count} for {len(ids)} response tokens and what comes before them")
    return entries[len(entries) - len(ids) :]


def _other_ids(read: Any, question: Question) -> str:
    if not isinstance(read, list) or len(read) != len(question.ids):
        count = len(read) if isinstance(read, list) else "no"
        return f"it read {count} tokens where {len(question.ids)} were meant{_of_images(question)}"
    place = next(n for n, (theirs, ours) in enumerate(zip(read, question.ids, strict=True)) if theirs != ours)
    return f"it read another text: its token {place} is {read[place]}, and ours is {question.ids[place]}"


def _of_images(question: Question) -> str:
    return "; its processor may resize images otherwise than the student's" if question.images else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadAnswer(f"its answer is a {type(value).__name__}, and no mapping")
    return value


def _first(value: Any, what: str) -> Any:
    if not isinstance(value, list) or not value:
        raise BadAnswer(f"its answer has no {what}")
    return value[0]


def _most(tokens: int, top_k: int) -> int:
    """Bytes of an answer at most."""
    return (1 << 20) + tokens * (top_k + 2) * BYTES_AN_ENTRY
