"""A served teacher's scores are those of the same model in this process, and an answer that is none is told of."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.core import Projection, TokenScores, score_tokens
from dopd_vl.models import backbone_of
from dopd_vl.served.protocols import Question
from dopd_vl.served.server import BadAnswer, RequestRefused, Server, ServerGone
from dopd_vl.served.teacher import LEAST_TAIL, ServedTeacher, token_scores
from dopd_vl.train_config import ServerSettings
from dopd_vl.training.run import load_examples
from dopd_vl.training.teachers import ServedNeeds, compare
from dopd_vl.views import View, ViewProcessor, processor_for
from tests.teacher_server import TeacherServer

RESPONSES = [[5, 6, 7], [8], [11, 12, 13, 14]]
QUICK = ServerSettings(timeout=5.0, wait=0.6)
Serve = Callable[..., TeacherServer]


class World:
    """A teacher in this process, and what it sees of three rollouts."""

    def __init__(self, name: str, models: Path, data: Path):
        family: Any = AutoModelForImageTextToText if name == "vision" else AutoModelForCausalLM
        self.name = f"{name}-teacher"
        self.model = family.from_pretrained(models / self.name).eval()
        processor = AutoProcessor.from_pretrained(models / f"{name}-student", padding_side="left")
        self.views: ViewProcessor = processor_for(self.model.config, processor)
        variant = "box_label" if name == "vision" else "hints"
        self.shown = [self.views.view(example, variant) for example in load_examples(str(data)).select(range(3))]
        self.vocabulary = self.model.config.get_text_config().vocab_size

    def questions(self) -> list[tuple[str, Question]]:
        token = getattr(self.model.config, "image_token_id", None)
        return [
            (f"example {number}", Question(view.prompt_ids, ids, view.images, token))
            for number, (view, ids) in enumerate(zip(self.shown, RESPONSES, strict=True))
        ]

    @torch.no_grad()
    def scores(self, view: View, response: list[int], top_k: int) -> TokenScores:
        batch = self.views.collate([view], [response], self.views.tokenizer.pad_token_id)
        hidden = backbone_of(self.model)(**batch).last_hidden_state[:, -len(response) - 1 : -1]
        head: Any = self.model.get_output_embeddings()
        ids = torch.tensor([response])
        return score_tokens(Projection(hidden, head.weight), ids, torch.ones_like(ids), top_k)


@pytest.fixture(params=["text", "vision"])
def world(request: pytest.FixtureRequest, nano_models: Path, text_data: Path, vision_data: Path) -> World:
    return World(request.param, nano_models, {"text": text_data, "vision": vision_data}[request.param])


@pytest.fixture
def text(nano_models: Path, text_data: Path) -> World:
    return World("text", nano_models, text_data)


def asked(server: TeacherServer, world: World, top_k: int = 16, settings: ServerSettings = QUICK) -> ServedTeacher:
    teacher = ServedTeacher(server.address, settings)
    assert compare(teacher, world.views, ServedNeeds(top_k, False)) is None
    return teacher


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_scores_are_those_of_the_model_in_this_process(world: World, serve: Serve, kind: str) -> None:
    server = serve(world.name, kind=kind)
    teacher = asked(server, world)
    answers, waited = teacher.ask(world.questions()).answers()
    found = token_scores(answers, 5, 16, world.vocabulary)
    assert waited > 0
    assert teacher.model == world.name
    for row, (view, response) in enumerate(zip(world.shown, RESPONSES, strict=True)):
        own = world.scores(view, response, 16)
        n = len(response)
        for name in ("logp", "rest_logp", "top_k_logp", "tail_logp"):
            theirs, ours = getattr(found, name)[row, :n], getattr(own, name)[0]
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
        assert found.top_k_ids[row, :n].tolist() == own.top_k_ids[0].tolist()
        head, tail = own.top_k_logp[0], own.tail_logp[0]
        torch.testing.assert_close(found.entropy[row, :n], -(head.exp() * head).sum(-1) - tail.exp() * tail)
        assert (found.entropy[row, :n] <= own.entropy[0] + 1e-4).all()
        assert (found.logp[row, n:] == 0).all()
        assert torch.isneginf(found.top_k_logp[row, n:]).all()


def test_the_whole_vocabulary_leaves_no_tail(text: World, serve: Serve) -> None:
    teacher = asked(serve(most_logprobs=text.vocabulary), text, text.vocabulary)
    answers, _ = teacher.ask(text.questions()).answers()
    found = token_scores(answers, 4, text.vocabulary, text.vocabulary)
    own = text.scores(text.shown[0], RESPONSES[0], text.vocabulary)
    assert torch.isneginf(found.tail_logp).all()
    torch.testing.assert_close(found.entropy[0, :3], own.entropy[0], atol=1e-4, rtol=1e-4)


def test_what_is_left_beside_a_sure_token_is_not_less_than_rounding() -> None:
    import numpy as np

    from dopd_vl.served.protocols import Answer

    found = token_scores([Answer(np.zeros(1), np.zeros((1, 2), int), np.array([[0.0, -30.0]]))], 1, 2, 100)
    assert found.tail_logp.exp().item() == pytest.approx(LEAST_TAIL)
    assert found.rest_logp.exp().item() == pytest.approx(LEAST_TAIL)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_ids_and_pixels_are_sent_as_the_view_holds_them(nano_models: Path, vision_data: Path, serve: Serve, kind: str):
    world = World("vision", nano_models, vision_data)
    server = serve(world.name, kind=kind)
    teacher = asked(server, world)
    before = len(server.scored())
    teacher.ask(world.questions()).answers()
    sent = server.scored()[before:]
    questions = [question for _, question in world.questions()]
    key = "token_ids" if kind == "vllm" else "input_ids"
    assert sorted(body[key] for body in sent) == sorted(question.with_one_pad_an_image() for question in questions)
    assert all(len(question.images) == 1 for question in questions)
    question = questions[0]
    seen, _ = server.score(question.with_one_pad_an_image(), question.data_urls())
    assert seen == question.ids


def shifted(server: TeacherServer, path: str, value: Any) -> None:
    """Each token's entry where its neighbour's belongs."""
    if path == "/v1/completions":
        entries = value["choices"][0]["prompt_logprobs"]
        entries[1:] = [*entries[2:], entries[1]]


def shorter(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        value["choices"][0]["prompt_logprobs"].pop()


def not_a_number(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        next(iter(value["choices"][0]["prompt_logprobs"][-1].values()))["logprob"] = float("nan")


def null(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        value["choices"][0]["prompt_logprobs"][-1] = None


def fewer(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        entry = value["choices"][0]["prompt_logprobs"][-1]
        for token in list(entry)[3:]:
            del entry[token]


def more_than_all(server: TeacherServer, path: str, value: Any) -> None:
    """As probabilities would be, or log-probabilities of another temperature that were not made to add up."""
    if path == "/v1/completions":
        for entry in value["choices"][0]["prompt_logprobs"][1:]:
            for one in entry.values():
                one["logprob"] = -0.1


def other_ids(server: TeacherServer, path: str, value: Any) -> None:
    """Of a text that was tokenised again."""
    if path == "/v1/completions":
        value["choices"][0]["prompt_token_ids"][1] += 1


def of_another_vocabulary(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        entry = value["choices"][0]["prompt_logprobs"][-1]
        entry["700000"] = entry.pop(list(entry)[-1])


def below_all(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        entry = value["choices"][0]["prompt_logprobs"][-1]
        entry["-5"] = entry.pop(list(entry)[-1])


def positive(server: TeacherServer, path: str, value: Any) -> None:
    if path == "/v1/completions":
        next(iter(value["choices"][0]["prompt_logprobs"][-1].values()))["logprob"] = 12.5


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (shifted, "aligned to another text"),
        (shorter, "entries for"),
        (not_a_number, "log-probabilities that are none"),
        (null, "has no log-probability"),
        (fewer, "3 entries, and 16 were asked for"),
        (more_than_all, "add up to more than one"),
        (other_ids, "it read another text: its token 1"),
        (positive, "log-probabilities that are none"),
        (of_another_vocabulary, "it tells of token 700000"),
        (below_all, "an entry of -5, which is no id"),
        (lambda *_: (200, []), "is a list, and no mapping"),
        (lambda *_: (200, {"choices": []}), "has no choice"),
        (lambda *_: (200, {"choices": [{"prompt_logprobs": "x"}]}), "prompt_logprobs has none"),
        (lambda *_: (400, {"error": {"message": "too\nlong \x1b[31m"}}), "answered 400: too long"),
        (lambda *_: (401, {"error": "Unauthorized"}), "model.server.key_env"),
        (lambda *_: (500, {"error": {"message": "Failed to apply prompt replacement"}}), "5 times: it answered 500"),
        (lambda *_: (307, {"detail": "over there"}), "it sends on to another address"),
    ],
)
def test_an_answer_that_is_none_names_the_example(
    text: World, serve: Serve, fault: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    teacher = asked(server, text)
    server.fault = fault
    monkeypatch.setattr("dopd_vl.served.server.FIRST_PAUSE", 0.01)
    with pytest.raises(UserError, match=r"model\.teacher: http.*") as caught:
        teacher.ask(text.questions()).answers()
    assert told in str(caught.value)
    assert "'example " in str(caught.value)
    assert isinstance(caught.value, (BadAnswer, RequestRefused))


def test_sglang_s_answers_are_checked_too(text: World, serve: Serve) -> None:
    server = serve(kind="sglang")
    teacher = asked(server, text)

    def next_token(server: TeacherServer, path: str, value: Any) -> None:
        entries = value["meta_info"]["input_token_logprobs"]
        entries[-1][1] = (entries[-1][1] + 1) % text.vocabulary

    def too_many(server: TeacherServer, path: str, value: Any) -> None:
        value["meta_info"]["prompt_tokens"] += 3

    for fault, told in ((next_token, "aligned to another text"), (too_many, "it read ")):
        server.fault = fault
        with pytest.raises(BadAnswer, match=told):
            teacher.ask(text.questions()).answers()


class Times:
    """A fault that passes after some requests."""

    def __init__(self, times: int, instead: Any):
        self.left, self.instead, self.lock = times, instead, threading.Lock()

    def __call__(self, server: TeacherServer, path: str, value: Any) -> Any:
        with self.lock:
            self.left -= 1
            return self.instead if self.left >= 0 else None


@pytest.mark.parametrize(
    "instead",
    [(429, {"detail": "slow down"}), (500, {"detail": "oh"}), (503, "busy"), b'{"choices": [{"prompt_lo', b""],
    ids=["too many requests", "broken", "busy", "cut", "empty"],
)
def test_what_passes_is_asked_again(text: World, serve: Serve, instead: Any) -> None:
    server = serve()
    teacher = asked(server, text, settings=ServerSettings(timeout=5, wait=30))
    server.fault = Times(3, instead)
    answers, _ = teacher.ask(text.questions()).answers()
    own = text.scores(text.shown[2], RESPONSES[2], 16)
    torch.testing.assert_close(torch.tensor(answers[2].logp).float(), own.logp[0], atol=1e-4, rtol=1e-4)


def test_a_server_that_starts_anew_is_waited_for(
    text: World,
    serve: Serve,
    nano_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    server = serve()
    teacher = asked(server, text, settings=ServerSettings(timeout=5, wait=60))
    port = server.port
    server.close()
    monkeypatch.setattr("dopd_vl.served.server.TOLD_AFTER", 0.0)
    sent = teacher.ask(text.questions())
    time.sleep(0.3)
    again = TeacherServer(nano_models / "text-teacher", port=port)
    try:
        answers, waited = sent.answers()
    finally:
        again.close()
    told = [str(one.message) for one in recwarn if "it is waited for, 60 s at most" in str(one.message)]
    assert len(told) == 1
    assert len(answers) == 3
    assert waited > 0


def test_one_that_is_gone_ends_in_one_line_and_soon(text: World, serve: Serve) -> None:
    server = serve()
    teacher = asked(server, text, settings=ServerSettings(timeout=5, wait=0.5))
    server.close()
    with pytest.raises(ServerGone, match=r"does not answer, and was waited for .* s \(model\.server\.wait\)"):
        teacher.ask(text.questions() * 20).answers()


def test_one_that_answers_too_late_is_gone_as_well(text: World, serve: Serve) -> None:
    server = serve()
    teacher = asked(server, text, settings=ServerSettings(timeout=0.2, wait=0.5))
    server.fault = lambda *_: time.sleep(0.6)
    begun = time.monotonic()
    with pytest.raises(ServerGone, match="Timeout"):
        teacher.ask(text.questions()).answers()
    assert time.monotonic() - begun < 20


def test_an_answer_is_read_no_further_than_it_can_be_long(serve: Serve) -> None:
    server = serve()
    server.fault = lambda *_: (200, ["x" * (2 << 20)])
    with pytest.raises(BadAnswer, match="more than 1048576 bytes"):
        Server(server.address, QUICK).ask("/v1/models")


def test_no_more_are_in_flight_than_allowed(text: World, serve: Serve) -> None:
    server = serve()
    teacher = asked(server, text, settings=ServerSettings(timeout=20, wait=5, concurrency=3))
    server.most_held = 0
    teacher.ask(text.questions() * 6).answers()
    assert server.most_held == 3


def test_the_key_is_sent_and_never_told(text: World, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "a-very-secret-key")
    server = serve()
    server.fault = lambda *_: (403, {"error": "no: a-very-secret-key"})
    with pytest.raises(RequestRefused) as caught:
        Server(server.address, ServerSettings(key_env="TEACHER_KEY")).ask("/v1/models")
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"model\.server\.key_env: the environment variable NO_KEY is not set"):
        Server(server.address, ServerSettings(key_env="NO_KEY"))
    with pytest.raises(ConfigurationError, match="an address with a password or a query in it"):
        Server("http://me:secret@host:8000", ServerSettings())


def test_a_teacher_that_reads_otherwise_is_refused_at_the_start(text: World, serve: Serve) -> None:
    server = serve()
    teacher = ServedTeacher(server.address, QUICK)

    def other_tokenizer(server: TeacherServer, path: str, value: Any) -> None:
        if path == "/tokenize":
            value["tokens"] = value["tokens"][::-1]

    server.fault = other_tokenizer
    with pytest.raises(ConfigurationError, match="its tokenizer makes other ids"):
        compare(teacher, text.views, ServedNeeds(16, False))
    server.fault = None
    server.vocabulary = text.vocabulary + 8
    server.model.resize_token_embeddings(server.vocabulary)
    with pytest.raises(ConfigurationError, match="its vocabulary has more entries"):
        compare(teacher, text.views, ServedNeeds(16, False))
    server.vocabulary = text.vocabulary - 8
    with pytest.raises(ConfigurationError, match="its vocabulary has fewer entries"):
        compare(teacher, text.views, ServedNeeds(16, False))


def test_a_comparison_that_failed_is_made_again(text: World, serve: Serve) -> None:
    """Of the same object, as in a notebook; one that went well is not."""
    server = serve()
    teacher = ServedTeacher(server.address, QUICK)
    server.fault = lambda server, path, value: value["tokens"].reverse() if path == "/tokenize" else None
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="its tokenizer makes other ids"):
            compare(teacher, text.views, ServedNeeds(16, False))
    server.fault = None
    compare(teacher, text.views, ServedNeeds(16, False))
    asked_for = len(server.requests)
    compare(teacher, text.views, ServedNeeds(16, False))
    assert len(server.requests) == asked_for
    compare(teacher, text.views, ServedNeeds(17, False))
    assert len(server.requests) > asked_for


def test_an_outage_is_told_each_time(text: World, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    teacher = asked(server, text, settings=ServerSettings(timeout=5, wait=30))
    monkeypatch.setattr("dopd_vl.served.server.TOLD_AFTER", 0.0)
    told = []
    monkeypatch.setattr("dopd_vl.served.server.warnings.warn", lambda text, **_: told.append(text))
    for _ in range(2):
        server.fault = Times(1, (503, "busy"))
        teacher.ask(text.questions()).answers()
    assert len(told) == 2


def test_a_teacher_of_texts_alone_is_not_tried_with_a_picture(
    nano_models: Path, vision_data: Path, serve: Serve
) -> None:
    world = World("vision", nano_models, vision_data)
    server = serve("vision-teacher", scale_out=False)
    assert compare(ServedTeacher(server.address, QUICK), world.views, ServedNeeds(8, False), sees_images=False) is None


def test_another_chat_template_is_told(text: World, serve: Serve) -> None:
    server = serve()
    server.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    teacher = ServedTeacher(server.address, QUICK)
    told = compare(teacher, text.views, ServedNeeds(16, False))
    assert told is not None
    assert "another chat template" in told


def test_how_the_server_has_to_be_started_is_said(nano_models: Path, vision_data: Path, text: World, serve: Serve):
    with pytest.raises(ConfigurationError, match=r"Start vLLM with --max-logprobs 30"):
        compare(ServedTeacher(serve(most_logprobs=20).address, QUICK), text.views, ServedNeeds(30, False))
    world = World("vision", nano_models, vision_data)
    server = serve("vision-teacher", scale_out=False)
    with pytest.raises(ConfigurationError, match="--enable-scale-out"):
        compare(ServedTeacher(server.address, QUICK), world.views, ServedNeeds(8, False))


def test_an_image_that_the_server_would_resize_is_told(nano_models: Path, vision_data: Path, serve: Serve) -> None:
    world = World("vision", nano_models, vision_data)
    server = serve(world.name)
    teacher = asked(server, world)
    processor = server.processor.image_processor
    processor.size = {"shortest_edge": 4 * processor.size["longest_edge"], "longest_edge": 1 << 24}
    with pytest.raises(BadAnswer, match="its processor may resize images otherwise"):
        teacher.ask(world.questions()).answers()


def test_a_model_that_is_not_served_and_a_server_of_another_kind_are_told(serve: Serve) -> None:
    server = serve()
    with pytest.raises(ConfigurationError, match=r"model\.server\.name: .* serves text-teacher"):
        ServedTeacher(server.address, ServerSettings(name="other", wait=0.5)).find()
    server.fault = lambda server, path, value: (404, {}) if path == "/version" else None
    with pytest.raises(ConfigurationError, match="neither vLLM nor SGLang"):
        ServedTeacher(server.address, QUICK).find()
