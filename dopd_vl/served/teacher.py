"""A served teacher: found, compared with the student before a run, and asked for many rollouts at once."""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.core import TokenScores
from dopd_vl.served.protocols import PROTOCOLS, Answer, Question, ServerProtocol
from dopd_vl.served.server import BadAnswer, RequestRefused, Server
from dopd_vl.train_config import ServerSettings

PROBE = "12 + 30 = 42; café, 漢字, кириллица 🙂\n\tdef f(x):\n    return x ** 2\n"
"""A text that tokenizers of different families cut differently."""
LEAST_TAIL = 1e-7
"""Mass outside of some tokens, at least: it is one minus theirs, and less of it cannot be told from rounding."""


class ServedTeacher:
    """A teacher behind vLLM or SGLang, which scores rollouts by their token ids.

    What it makes of a token is its log-probability and those of its `top_k` likeliest tokens; what is beyond is one
    tail. So a `TokenScores` of it has no `log_z` (zero), and an entropy that is of those tokens and the tail, which is
    at most the whole distribution's.

    Args:
        address: as http://HOST:PORT.
        settings: how it is asked.
        key: the setting that names it, which every error begins with.
        section: the setting below which its name and its key are given.
    """

    def __init__(
        self,
        address: str,
        settings: ServerSettings | None = None,
        key: str = "model.teacher",
        section: str = "model.server",
    ):
        self.settings = settings or ServerSettings()
        self.server = Server(address, self.settings, key, section)
        self.top_k, self.vocabulary = 0, 0
        """entries asked for, and of the student's vocabulary, once `check` has been told how many"""
        self.protocol: ServerProtocol | None = None
        self.model = ""
        """the name that the server gives it"""
        self._compared: Any = None
        self._in_flight = threading.BoundedSemaphore(self.settings.concurrency)

    @property
    def address(self) -> str:
        return self.server.address

    def find(self) -> None:
        """Learn which program serves which model; waits for a server that is yet to start.

        Raises:
            UserError: neither vLLM nor SGLang answers, or it serves no model of the name that was given.
        """
        kind = self.settings.kind
        self.protocol = PROTOCOLS[self._kind() if kind == "auto" else kind]
        try:
            listed: Any = self.server.ask("/v1/models")
            names = [str(one["id"]) for one in listed["data"]]
        except (RequestRefused, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self.server.told_as} lists no models at /v1/models") from error
        wanted = self.settings.name
        if not names or (wanted is not None and wanted not in names):
            raise ConfigurationError(
                f"{self.server.section}.name: {self.address} serves {', '.join(names) or 'nothing'}"
            )
        self.model = wanted or names[0]

    def _kind(self) -> str:
        for kind, path, field in (
            ("sglang", "/model_info", "model_path"),
            ("sglang", "/get_model_info", "model_path"),
            ("vllm", "/version", "version"),
        ):
            try:
                found: Any = self.server.ask(path)
            except RequestRefused:
                continue
            if isinstance(found, dict) and field in found:
                return kind
        raise ConfigurationError(
            f"{self.server.told_as} is neither vLLM nor SGLang, as far as it says; model.server.kind names it"
        )

    def check(
        self,
        tokenizer: Any,
        vocabulary: int,
        top_k: int,
        chat: tuple[list[dict[str, Any]], list[int]],
        picture: Question | None = None,
        template_options: Any = None,
    ) -> str | None:
        """Compare it with the student, and let it score a trial.

        Args:
            tokenizer: the student's.
            vocabulary: entries of the student's.
            top_k: entries that will be asked for.
            chat: messages, and the student's ids of them.
            picture: a prompt with an image and a response, for a student that sees images.
            template_options: of the chat template.

        Returns:
            What should be known and is no fault, such as another chat template.

        Raises:
            UserError: its tokens are others than the student's, or it cannot score; the message says what to change.
        """
        ours = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        compared = (tuple(ours), vocabulary, top_k, tuple(chat[1]), picture is None)
        if compared == self._compared:
            return None
        self._compared = None
        self.find()
        assert self.protocol is not None
        self.top_k, self.vocabulary = top_k, vocabulary
        theirs = self.protocol.tokenize(self.server, self.model, PROBE)
        if theirs is not None and theirs != ours:
            raise ConfigurationError(
                f"{self.server.told_as}: its tokenizer makes other ids of a text than the student's "
                f"({theirs[:8]}... for {ours[:8]}...); they must be the same"
            )
        self._check_vocabulary(vocabulary)
        pairs = [Question(ours[:-4], ours[-4:])] + ([picture] if picture is not None else [])
        for question in pairs:
            try:
                self.answer(question)
            except RequestRefused as error:
                raise ConfigurationError(f"{error}{self._advice(error, question)}") from None
            except BadAnswer as error:
                raise ConfigurationError(f"{self.server.told_as}, a trial: {error}") from None
        messages, ids = chat
        self._compared = compared
        own = self.protocol.chat_ids(self.server, self.model, messages, template_options)
        if own is not None and own != ids:
            return (
                f"{self.server.told_as} has another chat template than the student, whose template renders every "
                f"prompt: {len(own)} tokens for {len(ids)}"
            )
        return None

    def _check_vocabulary(self, vocabulary: int) -> None:
        """That it knows the student's last id and none beyond, where the server looks at ids at all (vLLM does)."""
        assert self.protocol is not None
        if self.protocol.name != "vllm":
            return
        for token, known in ((vocabulary - 1, True), (vocabulary, False)):
            try:
                self.protocol.score(self.server, self.model, Question([token], [token]), 1)
                answered = True
            except RequestRefused as error:
                if error.status != 400 or "vocab" not in str(error):
                    raise
                answered = False
            except BadAnswer:  # of the id beyond: its log-probability may be anything
                answered = True
            if answered != known:
                size = "more" if answered else "fewer"
                raise ConfigurationError(
                    f"{self.server.told_as}: its vocabulary has {size} entries than the student's {vocabulary}; "
                    "distillation compares whole distributions, so both must be equal"
                )

    def _advice(self, error: RequestRefused, question: Question) -> str:
        if error.status in (403, 404) and question.images and self.protocol is PROTOCOLS["vllm"]:
            return ". vLLM takes images with token ids where it was started with --enable-scale-out"
        if "logprobs" in str(error):
            return f". Start vLLM with --max-logprobs {self.top_k}, or lower the objective's top_k"
        return ""

    def answer(self, question: Question) -> Answer:
        """The scores of one response; waits for them."""
        if self.protocol is None:
            self.find()
        assert self.protocol is not None
        found = self.protocol.score(self.server, self.model, question, self.top_k)
        if found.top_ids.max(initial=0) >= self.vocabulary:
            raise BadAnswer(f"it tells of token {found.top_ids.max()}, and the student has {self.vocabulary} alone")
        return found

    def ask(self, questions: Sequence[tuple[str, Question]]) -> "Asked":
        """Begin to ask, all at once within the limit, and go on meanwhile.

        Args:
            questions: each with the id of its example, for errors.
        """
        self.server.go_on()

        def one(example: str, question: Question) -> Answer:
            try:
                return self.answer(question)
            except BadAnswer as error:
                raise BadAnswer(f"{self.server.told_as}, example {example!r}: {error}") from None
            except RequestRefused as error:
                raise RequestRefused(f"{error} (example {example!r})", error.status) from None
            except UserError:
                raise
            except Exception as error:  # in another thread; the run has to end in one line
                raise BadAnswer(f"{self.server.told_as}, example {example!r}: {error!r}") from error

        work: queue.SimpleQueue[tuple[Future[Answer], Callable[[], Answer]]] = queue.SimpleQueue()
        futures: list[Future[Answer]] = [Future() for _ in questions]
        for future, question in zip(futures, questions, strict=True):
            work.put((future, partial(one, *question)))
        for _ in range(min(self.settings.concurrency, len(futures))):
            # Daemons: a process that is ended does not wait for what a server is yet to answer.
            threading.Thread(target=_answer_all, args=(work, self._in_flight), daemon=True).start()
        return Asked(futures, self.server.stop)


def _answer_all(
    work: "queue.SimpleQueue[tuple[Future[Answer], Callable[[], Answer]]]", in_flight: threading.BoundedSemaphore
) -> None:
    while True:
        try:
            future, ask = work.get_nowait()
        except queue.Empty:
            return
        with in_flight:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(ask())
                except BaseException as error:  # whoever waits for it has to hear of it
                    future.set_exception(error)


class Asked:
    """Questions that are on their way."""

    def __init__(self, answers: list[Future[Answer]], stop: Callable[[], None]):
        self._answers, self._stop = answers, stop

    def answers(self) -> tuple[list[Answer], float]:
        """Every answer, and the seconds that were waited for them.

        Raises:
            UserError: one failed; those that were not sent yet are not.
        """
        begun = time.monotonic()
        try:
            wait(self._answers, return_when=FIRST_EXCEPTION)
            failed = [one for one in self._answers if one.done() and not one.cancelled() and one.exception()]
            if failed:
                failed[0].result()
            return [one.result() for one in self._answers], time.monotonic() - begun
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Send no more, and end all pauses."""
        for one in self._answers:
            one.cancel()
        self._stop()


def token_scores(answers: Sequence[Answer], length: int, top_k: int, vocabulary: int) -> TokenScores:
    """B answers as the scores of `[B, length]` tokens; what is beyond a response is masked, see `TokenScores`."""
    shape = (len(answers), length)
    logp, tail = np.zeros(shape), np.full(shape, -math.inf)
    rest, entropy = np.full(shape, -math.inf), np.zeros(shape)
    top_ids, top_logp = np.zeros((*shape, top_k), dtype=np.int32), np.full((*shape, top_k), -math.inf)
    for row, answer in enumerate(answers):
        n = len(answer.logp)
        logp[row, :n], top_ids[row, :n], top_logp[row, :n] = answer
        rest[row, :n] = np.log(np.maximum(-np.expm1(answer.logp), LEAST_TAIL))
        head = np.exp(answer.top_logp)
        entropy[row, :n] = -(head * answer.top_logp).sum(-1)
        if top_k < vocabulary:
            outside = np.maximum(1.0 - head.sum(-1), LEAST_TAIL)
            tail[row, :n] = np.log(outside)
            entropy[row, :n] -= outside * tail[row, :n]

    def of(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float()

    return TokenScores(
        logp=of(logp),
        rest_logp=of(rest),
        entropy=of(entropy),
        log_z=torch.zeros(shape),
        top_k_ids=torch.from_numpy(top_ids),
        top_k_logp=of(top_logp),
        tail_logp=of(tail),
    )
