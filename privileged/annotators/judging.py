r"""The judge: how much the privileged part of a record gives the answer away, as a model sees it.

    illusion score = log P(answer | x, p, "The answer is") - log P(answer | x, "The answer is")

in nats, summed over the tokens of the gold answer, which is said at once and without reasoning. x is the prompt, p one
part of the privileged information in the very words in which the teacher is shown it. Where a model gives no
log-probabilities, it is asked whether p gives the answer away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import inspect
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dopd_vl.common.digests import digest_json
from dopd_vl.common.errors import PrepareError, RecordError, one_line
from privileged.annotators.asking import Asker, RequestFailed
from privileged.annotators.endpoint import MAX_DETAIL, EndpointGenerator, data_url
from privileged.annotators.local import LocalGenerator, load_model, model_identity
from privileged.annotators.parts import check_request, replied_text
from privileged.annotators.prompts import judge_prompt
from privileged.annotators.replies import verdict
from privileged.annotators.requests import Generator, Reply, RequestRefused, estimated_tokens
from privileged.audit.audit import AuditConfig, JudgeConfig
from privileged.model_settings import ModelConfig
from privileged.records.fields import Finding
from privileged.records.images import StoredImage
from privileged.records.records import Record
from privileged.rendering.variants import VARIANTS
from privileged.schema import IMAGE_MARKER, Message

LEAD = "The answer is"
"""How an answer begins that is said at once."""

JUDGED = {"hints": "hints", "hint_summary": "hint_summary", "caption": "caption", "boxes": "box_caption"}
"""The parts that may not give the answer away, and the variant in whose words they are judged."""

MAX_ANSWER = 2000
"""Characters of an answer. A longer one is a text that nobody says at once."""


@dataclass(frozen=True)
class AnswerRequest:
    """Asks for the log-probability of an answer that is said at once, after a conversation with its images."""

    messages: tuple[Message, ...]
    images: tuple[StoredImage, ...]
    answer: str

    def key(self, generator: Mapping[str, Any]) -> str:
        """Equal for requests that mean the same to the same generator."""
        images = [hashlib.sha256(stored.data).hexdigest() for stored in self.images]
        return digest_json([dict(generator), list(self.messages), images, self.answer])

    def prompt_tokens(self) -> int:
        """An estimate of the prompt's length, the answer included."""
        return estimated_tokens([message["content"] for message in self.messages] + [self.answer], self.images)


@dataclass
class Judgement:
    """What the judge said of a record: the illusion score in nats, that of the part which gives away most; None where
    there is none. `findings` are for the audit."""

    illusion_score: float | None = None
    findings: list[Finding] = dataclasses.field(default_factory=list)


class RecordJudge:
    """Judges records, any number of them at a time."""

    def __init__(self, audit: AuditConfig, asker: Asker):
        assert audit.model is not None
        self._settings, self._limit, self._asker = audit.model, audit.max_illusion_score, asker
        self._prompt = judge_prompt()

    async def judge(self, record: Record) -> Judgement:
        """Judge each part alone. What cannot be judged is a finding; only what ends the whole run is raised."""
        parts = [part for part in JUDGED if record.privileged[part]]  # type: ignore[literal-required]
        if not parts:
            return Judgement()
        try:
            if record.task == "code":
                raise RecordError("its answer is tests, and nothing that is said")
            if len(record.answer) > MAX_ANSWER:
                raise RecordError(f"its answer has {len(record.answer)} characters, more than {MAX_ANSWER}")
            if self._settings.ask == "question":
                return await self._question(record, parts)
            return await self._log_probability(record, parts)
        except (RequestFailed, RecordError) as error:
            return Judgement(None, [Finding("not_judged", f"{error}")])

    async def _log_probability(self, record: Record, parts: Sequence[str]) -> Judgement:
        example = record.example()
        variants = [VARIANTS[name] for name in ("none", *(JUDGED[part] for part in parts))]
        plain, *shown = await _all(self._said(record, variant.draw_up(example).messages) for variant in variants)
        if isinstance(plain, Exception):
            raise plain
        findings = _not_judged(parts, shown)
        gains = [(given - plain, part) for given, part in zip(shown, parts, strict=True) if isinstance(given, float)]
        if not gains:
            return Judgement(None, findings)
        score, part = max(gains)
        if self._limit is not None and score > self._limit:
            told = f"with its {part} the answer {record.answer[:80]!r} is {score:.2f} nats likelier, more than"
            findings.append(Finding("answer_given_away", f"{told} {self._limit:g}"))
        return Judgement(score, findings)

    async def _said(self, record: Record, messages: Sequence[Message]) -> float:
        """The log-probability of the answer, said at once after these messages."""
        reply = await self._asker.ask(AnswerRequest(tuple(messages), tuple(record.images), record.answer))
        return float(json.loads(replied_text(reply))["log_probability"])

    async def _question(self, record: Record, parts: Sequence[str]) -> Judgement:
        async def asked(part: str) -> tuple[bool, str]:
            value = record.privileged[part]  # type: ignore[literal-required]
            request = check_request(record, part, value, self._prompt, self._settings.sampling.seed)
            return verdict(replied_text(await self._asker.ask(request)))

        said = await _all(asked(part) for part in parts)
        verdicts = [(part, *one) for part, one in zip(parts, said, strict=True) if isinstance(one, tuple)]
        told = [f"its {part}: {reason}" for part, good, reason in verdicts if not good]
        findings = [Finding("answer_given_away", "; ".join(told))] if told else []
        return Judgement(None, findings + _not_judged(parts, said))


async def _all(coroutines: Any) -> list[Any]:
    """What they came to, failures of single requests and replies among it. All are awaited before what ends the run is
    raised: none is left running."""
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RequestFailed | RecordError):
            raise result
    return results


def _not_judged(parts: Sequence[str], results: Sequence[Any]) -> list[Finding]:
    failed = [f"its {part}: {one}" for part, one in zip(parts, results, strict=True) if isinstance(one, Exception)]
    return [Finding("not_judged", "; ".join(failed))] if failed else []


def build_judge(settings: JudgeConfig) -> Generator:
    """What answers the judge's requests."""
    if settings.ask == "question":
        return (EndpointGenerator if settings.kind == "endpoint" else LocalGenerator)(settings)
    return (EndpointScorer if settings.kind == "endpoint" else LocalScorer)(settings)


def judge_fingerprint(settings: JudgeConfig) -> list[Any]:
    """Of everything that decides what the judge says."""
    model = model_identity(str(settings.model)) if settings.kind == "local" else settings.model
    asked = [LEAD, JUDGED] if settings.ask == "log_probability" else repr(judge_prompt())
    return [settings.content(), model, asked]


class LocalScorer:
    """Log-probabilities of answers by a transformers model in this process, one at a time.

    A model that takes no images is shown the text alone.
    """

    concurrency = 1

    def __init__(self, settings: ModelConfig):
        self._settings = settings
        self._loaded: tuple[Any, Any, bool] | None = None

    def identity(self) -> dict[str, Any]:
        extra = self._settings.sampling.extra
        model, dtype = model_identity(str(self._settings.model)), self._settings.dtype
        return {"kind": "local", "model": model, "dtype": dtype, "lead": LEAD, "extra": extra}

    async def generate(self, request: AnswerRequest) -> Reply:
        return await asyncio.to_thread(self._score, request)

    def _score(self, request: AnswerRequest) -> Reply:
        import torch
        from jinja2 import TemplateError

        if self._loaded is None:
            self._loaded = load_model(self._settings)
        processor, model, takes_images = self._loaded
        images = [stored.image.convert("RGB") for stored in request.images] if takes_images else []
        messages: list[dict[str, Any]]
        if takes_images:
            messages = _with_image_parts(request, [{"type": "image"} for _ in images])
        else:
            messages = [{**m, "content": m["content"].replace(IMAGE_MARKER, "").strip()} for m in request.messages]
        options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        if images:
            options["images"] = images
        try:
            extra = self._settings.sampling.extra
            prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **extra)
            lead = processor(text=[prompt + LEAD], **options)
            whole = processor(text=[f"{prompt}{LEAD} {request.answer}"], **options)
            ids = whole["input_ids"][0]
            count = len(ids) - _shared(lead["input_ids"][0].tolist(), ids.tolist())
            # Of a long prompt with a large vocabulary, all logits would take gigabytes.
            takes_number = "logits_to_keep" in inspect.signature(model.forward).parameters
            kept = {"logits_to_keep": count + 1} if takes_number else {}
            with torch.inference_mode():
                logits = model(**whole.to(model.device), **kept).logits[0, -count - 1 : -1].float()
            said = logits.log_softmax(-1).gather(1, ids[-count:, None].to(logits.device))
        except (TemplateError, ValueError, RuntimeError) as error:  # a role that the template lacks, out of memory
            raise RequestRefused(f"{self._settings.model} cannot read it: {one_line(error)}") from error
        return _scored(float(said.double().sum()), count, len(ids))

    async def close(self) -> None:
        self._loaded = None


class EndpointScorer(EndpointGenerator):
    """Log-probabilities of answers by a server that gives those of a prompt, as vLLM does.

    Two requests an answer: one without it tells where it begins, one with it what its tokens' log-probabilities are.
    """

    def identity(self) -> dict[str, Any]:
        extra = self._settings.sampling.extra
        return {"kind": "endpoint", "model": self._settings.model, "lead": LEAD, "extra": extra}

    async def generate(self, request: AnswerRequest) -> Reply:  # type: ignore[override]
        images = [{"type": "image_url", "image_url": {"url": data_url(stored)}} for stored in request.images]
        # Plain text where there is no image: servers of text models often take nothing else.
        messages = _with_image_parts(request, images) if images else [dict(message) for message in request.messages]
        lead = await self._said(messages, LEAD)
        whole = await self._said(messages, f"{LEAD} {request.answer}", prompt_logprobs=0)
        usage, tokens = lead.get("usage"), whole.get("prompt_logprobs")
        begins = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, list) or not isinstance(begins, int):
            raise PrepareError(
                f"{self._settings.KEY}.ask: {self._settings.url} gives no log-probabilities of a prompt "
                "(prompt_logprobs, as vLLM does); set ask: question"
            )
        if not 0 <= begins <= len(tokens):
            raise RequestRefused(f"the answer begins at token {reprlib.repr(begins)} of {len(tokens)}, says the server")
        try:
            values = [float(token["logprob"]) for place in tokens[begins:] for (token,) in [place.values()]]
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            detail = self._blot(one_line(error))[:MAX_DETAIL]
            raise RequestRefused(f"the server's prompt_logprobs cannot be read ({detail})") from None
        return _scored(sum(values), len(values), begins + len(tokens))

    async def _said(self, messages: list[dict[str, Any]], text: str, **options: Any) -> dict[str, Any]:
        """The completion of a conversation in which the model has said `text`, and goes on."""
        options |= {"continue_final_message": True, "add_generation_prompt": False, **self._settings.sampling.extra}
        said = [*messages, {"role": "assistant", "content": text}]
        body = await self._send(said, max_tokens=1, temperature=0.0, extra_body=options)
        return dict(self._completion(body))


def _scored(total: float, count: int, prompt_tokens: int) -> Reply:
    problem = None
    if count < 1 or not math.isfinite(total):
        problem = f"the log-probability of the answer's {count} tokens is {total}"
    return Reply(json.dumps({"log_probability": total, "tokens": count}), prompt_tokens, 1, problem)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _with_image_parts(request: AnswerRequest, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages in parts, with an image at each marker, or all before the first text of the user's."""
    waiting = list(images)
    marked = any(IMAGE_MARKER in message["content"] for message in request.messages)
    messages = []
    for message in request.messages:
        parts: list[dict[str, Any]] = []
        if not marked and message["role"] == "user":
            parts, waiting = waiting, []
        for number, text in enumerate(message["content"].split(IMAGE_MARKER)):
            if number:
                parts.append(waiting.pop(0))
            if text:
                parts.append({"type": "text", "text": text})
        messages.append({"role": message["role"], "content": parts})
    return messages
