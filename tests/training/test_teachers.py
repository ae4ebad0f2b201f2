"""Served teachers and several of them, in training: the same as one in this process, each for its own examples."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.core import Plan, Source, Term
from dopd_vl.objectives import OBJECTIVES
from dopd_vl.objectives.common import PRIVILEGED_TEACHER
from dopd_vl.served.teacher import ServedTeacher
from dopd_vl.train_config import ModelSettings, ServerSettings
from dopd_vl.training.run import load_examples
from dopd_vl.training.teachers import Teacher, TeacherLost, Teachers, served_needs, teachers_of, truncated
from tests.commands import dopd_vl, start_dopd_vl
from tests.conftest import MakeTrainer
from tests.teacher_server import TeacherServer

Serve = Callable[..., TeacherServer]
VOCABULARY = 640
"""More than the small models know."""
OPD_PRIVILEGED = {"teacher_view": "privileged", "divergence": "js"}


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("world", ["text", "vision"])
@pytest.mark.parametrize("name", ["dopd", "dopd-anchored"])
def test_a_served_teacher_teaches_what_the_same_one_does_here(
    make_trainer: MakeTrainer, serve: Serve, world: str, name: str
) -> None:
    """Over the whole vocabulary, where the likeliest tokens are all of them."""
    server = serve(f"{world}-teacher", most_logprobs=VOCABULARY)
    ends, routings = [], []
    for teacher in (None, server.address):
        given = {} if teacher is None else {"teacher": ServedTeacher(teacher)}
        size = server.vocabulary
        objective = OBJECTIVES[name](top_k=size)
        trainer = make_trainer(world, objective, max_steps=3, logged_top_k=size, num_generations=2, **given)
        trainer.train()
        ends.append(weights(trainer))
        routings.append([row for row in trainer.state.log_history if "gap/mean" in row])
    for here, there in zip(*(end.values() for end in ends), strict=True):
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-3)
    for here, there in zip(*routings, strict=True):
        for key in ("gap/mean", "token_share/HT", "token_share/LH", "loss", "entropy/teacher/privileged"):
            if key in here:
                assert there[key] == pytest.approx(here[key], rel=1e-2, abs=1e-3), key
        assert there["teacher_wait_seconds"] >= 0
        assert "teacher_wait_seconds" not in here


SERVABLE = {
    "dopd": {},
    "dopd-anchored": {},
    "opd": {},
    "privileged opd": OPD_PRIVILEGED,
    "exopd": {},
    "eopd": {},
    "uni-opd": {},
    "va-opd": {},
    "sa-opd": {},
    "top-d": {},
    "cal-opd": {},
}


@pytest.mark.parametrize("world", ["text", "vision"])
@pytest.mark.parametrize("name", SERVABLE)
def test_objectives_need_no_change(make_trainer: MakeTrainer, serve: Serve, world: str, name: str) -> None:
    if world == "text" and name == "va-opd":
        pytest.skip("it is about images")
    objective = OBJECTIVES[name.split()[-1]](**SERVABLE[name])
    server = serve(f"{world}-teacher")
    trainer = make_trainer(world, objective, teacher=server.address, num_generations=4)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert torch.isfinite(torch.tensor(row["loss"]))
    assert trainer.teacher_model is None
    views = sum(source.policy == "teacher" for source in objective.sources())
    assert len(server.scored()) == 3 + (world == "vision") + 4 * views  # the trials, and each rollout on each view


@pytest.mark.parametrize(("name", "told"), [("opcd", "student's likeliest tokens"), ("tip", "whole distribution")])
def test_what_no_server_gives_is_refused_before_anything_runs(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        served_needs(OBJECTIVES[name](), 4, 128, 1000)


def test_every_objective_is_servable_or_says_why_not() -> None:
    refused = set()
    for name, objective in OBJECTIVES.items():
        try:
            served_needs(objective(), 8, 128, 1000)
        except ValueError:
            refused.add(name)
    assert refused == {"opcd", "tip"}


def test_whole_distributions_are_cut_and_that_is_said_once(make_trainer: MakeTrainer, serve: Serve) -> None:
    with pytest.warns(UserWarning, match=r"takes the 24 likeliest tokens, and all others as one \(top_24_mass"):
        trainer = make_trainer("text", OBJECTIVES["dopd"](top_k=24), teacher=serve().address, logged_top_k=24)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert 0 < row["top_24_mass/teacher/privileged"] < 1
    assert row["teacher_wait_seconds"] >= 0


def mixed(data: Path) -> Dataset:
    """The text examples, every other one from another source."""
    dataset = load_examples(str(data))
    column = ["even" if number % 2 == 0 else "odd" for number in range(len(dataset))]
    return dataset.remove_columns("source").add_column("source", column)


@pytest.mark.parametrize("served", [(), ("odd",), ("default",), ("default", "odd")])
def test_each_example_is_taught_by_its_own_teacher(
    make_trainer: MakeTrainer,
    serve: Serve,
    nano_models: Path,
    text_data: Path,
    other_teacher: Path,
    served: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 16
    folders = {"default": nano_models / "text-teacher", "odd": other_teacher}
    given: dict[str, Any] = {name: str(folder) for name, folder in folders.items()}
    for name in served:
        given[name] = serve(folders[name]).address
    trainer = make_trainer(
        "text",
        OBJECTIVES["dopd"](top_k=size),
        dataset=mixed(text_data),
        teacher=given["default"],
        teachers={"odd": Teacher(given["odd"], sources=["odd"])},
        logged_top_k=size,
        per_device_train_batch_size=6,
        max_steps=2,
    )
    seen: list[tuple[Any, Plan]] = []
    decide = trainer.objective.decide

    class Watched:
        name, top_k = "dopd", size

        def sources(self) -> Any:
            return OBJECTIVES["dopd"]().sources()

        def decide(self, scores: Any) -> Any:
            decision = decide(scores)
            seen.append((scores, decision.plan))
            return decision

    trainer.objective = Watched()
    batches: list[list[dict[str, Any]]] = []
    inner = trainer._roll_out_and_score
    monkeypatch.setattr(trainer, "_roll_out_and_score", lambda inputs: (batches.append(inputs), inner(inputs))[1])
    trainer.train()

    models = {name: AutoModelForCausalLM.from_pretrained(folder).eval() for name, folder in folders.items()}
    scores, example_rows = seen[0][0], batches[0]
    for row, example in enumerate(example_rows):
        name = "odd" if example["source"] == "odd" else "default"
        n = int(scores.response_mask[row].sum())
        response = scores.response_ids[row, :n].tolist()
        view = trainer.views.view(example, "hints")
        batch = trainer.views.collate([view], [response], trainer.views.tokenizer.pad_token_id)
        with torch.no_grad():
            logp = models[name](**batch).logits[0, -n - 1 : -1].log_softmax(-1)
        own = logp.gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(scores.policies[PRIVILEGED_TEACHER].logp[row, :n], own, atol=1e-4, rtol=1e-4)
    log = next(row for row in trainer.state.log_history if "loss" in row)
    assert log["token_share/teacher:odd"] + log["token_share/teacher:default"] == pytest.approx(1.0)
    assert {f"logp/teacher:{name}" for name in folders} <= set(log)
    assert log["loss_share/teacher:odd"] + log["loss_share/teacher:default"] == pytest.approx(1.0, abs=1e-4)


def test_mixed_teachers_end_where_two_in_this_process_do(
    make_trainer: MakeTrainer, serve: Serve, text_data: Path, other_teacher: Path, nano_models: Path
) -> None:
    server = serve(most_logprobs=VOCABULARY)
    size = server.vocabulary
    ends = []
    for default in (str(nano_models / "text-teacher"), server.address):
        trainer = make_trainer(
            "text",
            OBJECTIVES["dopd"](top_k=size),
            dataset=mixed(text_data),
            teacher=default,
            teachers={"odd": Teacher(str(other_teacher), sources=["odd"])},
            logged_top_k=size,
            per_device_train_batch_size=6,
            gradient_accumulation_steps=2,
            max_steps=3,
        )
        trainer.train()
        ends.append(weights(trainer))
    for here, there in zip(*(end.values() for end in ends), strict=True):
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-3)


def test_a_plan_is_shared_out_by_whoever_teaches() -> None:
    weight = torch.ones(3, 2)
    plan = Plan(
        (
            Term(PRIVILEGED_TEACHER, "js", "full", weight),
            Term(PRIVILEGED_TEACHER, "reverse_kl", "top_k", weight, top_k=4),
            Term(Source("student", "privileged"), "reverse_kl", "sampled", weight),
        )
    )
    teachers = Teachers(True, {"a": Teacher("x", ["s"]), "b": Teacher("http://y", tasks=["t"])}, {"teacher:b": None})
    shared = teachers.shared_out(plan, torch.tensor([0, 1, 2]), top_k=5)
    assert [(str(t.source), t.support, t.weight[:, 0].tolist()) for t in shared.terms] == [
        ("teacher:default/privileged", "full", [1, 0, 0]),
        ("teacher:a/privileged", "full", [0, 1, 0]),
        ("teacher/privileged", "top_k", [0, 0, 1]),
        ("teacher/privileged", "top_k", [1, 1, 1]),
        ("student/privileged", "sampled", [1, 1, 1]),
    ]
    assert shared.terms[2].top_k == 5
    assert Teachers().shared_out(plan, torch.zeros(3), 5) is plan
    assert [teachers.of(e) for e in ({"source": "s"}, {"task": "t"}, {"source": "u"})] == [1, 2, 0]
    assert Teachers(False, {"a": Teacher("x", ["s"])}).of({"source": "u", "task": "v"}) is None


def test_fewer_entries_leave_their_mass_in_the_tail(make_trainer: MakeTrainer) -> None:
    from dopd_vl.core import Projection, score_tokens

    torch.manual_seed(0)
    projection = Projection(torch.randn(2, 3, 8), torch.randn(50, 8))
    ids, mask = torch.randint(50, (2, 3)), torch.ones(2, 3, dtype=torch.bool)
    for field, cut in vars(truncated(score_tokens(projection, ids, mask, 20), 7)).items():
        torch.testing.assert_close(cut, getattr(score_tokens(projection, ids, mask, 7), field))


@pytest.mark.parametrize("name", ["opsd", "sdft"])
def test_an_objective_without_a_teacher_asks_none(make_trainer: MakeTrainer, serve: Serve, name: str) -> None:
    server = serve()
    others = {"own": Teacher("http://127.0.0.1:9", tasks=["exact"])}
    trainer = make_trainer("text", OBJECTIVES[name](), teacher=server.address, teachers=others)
    trainer.train()
    assert not server.requests


def test_the_student_is_scored_while_the_server_works(
    make_trainer: MakeTrainer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    trainer = make_trainer("text", OBJECTIVES["dopd"](top_k=16), teacher=server.address, logged_top_k=16)
    trials, held = len(server.scored()), []

    def slowly(server: TeacherServer, path: str, value: Any) -> None:
        time.sleep(0.5)

    inner = trainer.policies.score

    def score(*arguments: Any) -> Any:
        deadline = time.monotonic() + 10
        while len(server.scored()) < trials + 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        held.append(server.held)
        return inner(*arguments)

    server.fault = slowly
    monkeypatch.setattr(trainer.policies, "score", score)
    trainer.train()
    assert held == [4]  # all rollouts of the step are asked for before the student's copy is scored


def test_an_example_without_a_teacher_is_set_aside(
    make_trainer: MakeTrainer, text_data: Path, other_teacher: Path
) -> None:
    trainer = make_trainer(
        "text",
        OBJECTIVES["opd"](),
        dataset=mixed(text_data),
        teacher=None,
        teachers={"odd": Teacher(str(other_teacher), sources=["odd"])},
        per_device_train_batch_size=6,
        max_steps=2,
    )
    trainer.train()
    assert trainer.refusals
    assert all("no teacher teaches source 'even'" in refusal.reason for refusal in trainer.refusals)


@pytest.mark.parametrize(
    ("teachers", "told"),
    [
        ({"a b": Teacher("x", ["s"])}, "'a b' is no name"),
        ({"a": Teacher("x")}, "give the sources or the tasks"),
    ],
)
def test_what_a_teacher_of_data_must_say(make_trainer: MakeTrainer, teachers: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        make_trainer("text", OBJECTIVES["opd"](), teachers=teachers)


# ---- through the command -------------------------------------------------------------------------------------------


def command(models: Path, data: Path, run: Path, *more: str, teacher: str = "") -> list[str]:
    settings = {
        "output_dir": run,
        "model.student": models / "text-student",
        "model.teacher": teacher or models / "text-teacher",
        "data.train": data,
        "training.max_steps": 4,
        "training.per_device_train_batch_size": 4,
        "training.num_generations": 2,
        "training.max_completion_length": 6,
        "training.gradient_checkpointing": "false",
        "training.learning_rate": 0.001,
        "objective.settings.top_k": 16,
        "training.logged_top_k": 16,
        "training.save_steps": 100,
    }
    return ["train", *(word for key, value in settings.items() for word in (f"--{key}", str(value))), *more]


def test_a_teacher_that_is_gone_leaves_a_checkpoint_that_goes_on_as_if_nothing_had_been(
    nano_models: Path, text_data: Path, serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    quick = ("--model.server.wait", "1", "--model.server.timeout", "5")
    whole = dopd_vl(*command(nano_models, text_data, tmp_path / "whole", *quick, teacher=server.address))
    assert whole.returncode == 0, whole.stderr
    trials = len(server.scored()) - 4 * 4

    def after_two_steps(server: TeacherServer, path: str, value: Any) -> Any:
        return (503, "gone") if len(server.scored()) > trials + 2 * 4 else None

    server.requests.clear()
    server.fault = after_two_steps
    broken = dopd_vl(*command(nano_models, text_data, tmp_path / "run", *quick, teacher=server.address))
    assert broken.returncode == 2
    [line] = [line for line in broken.stderr.splitlines() if "does not answer" in line]
    assert f"model.teacher: {server.address} does not answer, and was waited for " in line
    assert "(model.server.wait): it answered 503" in line
    assert "--resume true" in line
    assert "Traceback" not in broken.stderr
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]

    server.fault = None
    again = dopd_vl(
        *command(nano_models, text_data, tmp_path / "run", *quick, "--resume", "true", teacher=server.address)
    )
    assert again.returncode == 0, again.stderr
    ends = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert ends[0] == ends[1]
    card = (tmp_path / "run" / "student" / "README.md").read_text(encoding="utf-8")
    assert "text\\-teacher" in card
    assert "127.0.0.1" not in card


def test_ctrl_c_waits_for_no_answer(nano_models: Path, text_data: Path, serve: Serve, tmp_path: Path) -> None:
    server = serve()
    begun = threading.Event()

    def never(server: TeacherServer, path: str, value: Any) -> None:
        if len(server.scored()) > 4 * 2:
            begun.set()
            time.sleep(60)

    server.fault = never
    run = start_dopd_vl(*command(nano_models, text_data, tmp_path / "run", teacher=server.address))
    assert begun.wait(120)
    run.send(signal.SIGINT)
    asked = time.monotonic()
    done = run.result(50)
    assert time.monotonic() - asked < 40
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_run_does_not_go_on_with_another_served_model(
    nano_models: Path, text_data: Path, serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    more = ("--training.save_steps", "2", "--training.max_steps", "2")
    assert dopd_vl(*command(nano_models, text_data, tmp_path / "r", *more, teacher=server.address)).returncode == 0
    moved = serve()  # the same model at another address is the same teacher
    raised = ("--resume", "true", "--training.lr_scheduler_type", "cosine")
    same = dopd_vl(*command(nano_models, text_data, tmp_path / "r", *more, *raised, teacher=moved.address))
    assert same.returncode == 0, same.stderr
    moved.name = "another"
    other = dopd_vl(*command(nano_models, text_data, tmp_path / "r", *more, *raised, teacher=moved.address))
    assert other.returncode == 2
    assert "model.teacher: other content now (served model changed)" in other.stderr


def test_teachers_by_source_through_the_command(
    nano_models: Path, text_data: Path, serve: Serve, other_teacher: Path, tmp_path: Path
) -> None:
    sources = sorted(set(load_examples(str(text_data))["source"]))
    tasks = sorted(set(load_examples(str(text_data))["task"]))
    server = serve()
    more = ("--model.teachers.own.model", str(other_teacher), "--model.teachers.own.sources", json.dumps(sources[:1]))
    done = dopd_vl(*command(nano_models, text_data, tmp_path / "run", *more, teacher=server.address))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("token_share/teacher:own" in row for row in rows), tasks


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--model.teachers.a.sources", "[x]"), "model.teachers.a.model: none given"),
        (("--model.teachers.a.model", "nano:text-teacher"), "model.teachers.a: give the sources or the tasks"),
        (
            ("--model.teachers.a.model", "SAME", "--model.teachers.a.sources", "[nothing-like-it]"),
            "model.teachers.a.sources: no example of data.train has source 'nothing-like-it'",
        ),
        (("--model.quantization", "4bit"), "model.quantization=4bit: weights of so few bits do not learn"),
        (("--model.teacher_quantization", "2bit"), "model.teacher_quantization"),
        (("--model.teacher", "http://127.0.0.1:9", "--objective.name", "opcd"), "objective.name: objective 'opcd'"),
        (
            ("--model.teacher", "http://127.0.0.1:9", "--model.teacher_quantization", "4bit"),
            "model.teacher_quantization: a served teacher lies as its server loaded it",
        ),
        (
            ("--model.teacher", "http://127.0.0.1:9", "--model.server.wait", "0.3"),
            "model.teacher: http://127.0.0.1:9 does not answer, and was waited for 0.",
        ),
        (
            ("--model.teacher", "http://127.0.0.1:9", "--training.shard_teacher", "true"),
            "training.shard_teacher: no teacher is in this process",
        ),
        (("--model.teacher", "http://me:pw@host"), "an address with a password or a query in it"),
        (("--model.teacher", "http://host?key=pw"), "an address with a password or a query in it"),
    ],
)
def test_what_is_wrong_with_a_teacher_is_one_line_before_a_folder_is_made(
    nano_models: Path, text_data: Path, tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    same = str(nano_models / "text-teacher")
    more = tuple(same if word == "SAME" else word for word in more)
    refused = dopd_vl(*command(nano_models, text_data, tmp_path / "run"), *more)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "pw" not in refused.stderr
    assert not (tmp_path / "run").exists()


def test_each_server_is_sent_its_own_key(
    nano_models: Path, text_data: Path, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings(
        teacher="http://127.0.0.1:1",
        teachers={
            "a": {"model": "http://127.0.0.1:2", "tasks": ["exact"], "key_env": "KEY_OF_A", "name": "one"},
            "b": {"model": "http://127.0.0.1:3", "tasks": ["choice"]},
        },
        server=ServerSettings(key_env="KEY_OF_DEFAULT", wait=7.0),
    )
    monkeypatch.setenv("KEY_OF_DEFAULT", "the-default-s-key")
    monkeypatch.setenv("KEY_OF_A", "the-key-of-a")
    default, others = teachers_of(settings)
    sent = [one.server._client.headers.get("authorization") for one in (default, others["a"].model, others["b"].model)]
    assert sent == ["Bearer the-default-s-key", "Bearer the-key-of-a", None]
    assert (others["a"].model.settings.name, others["a"].model.settings.wait) == ("one", 7.0)
    monkeypatch.delenv("KEY_OF_A")
    with pytest.raises(ConfigurationError, match=r"model\.teachers\.a\.key_env: the environment variable KEY_OF_A"):
        teachers_of(settings)


def test_a_text_only_teacher_is_shown_no_image(make_trainer: MakeTrainer, nano_models: Path) -> None:
    trainer = make_trainer("vision", OBJECTIVES["opd"](), teacher=str(nano_models / "text-teacher"))
    with pytest.raises(UserError, match="teacher reads text only, and was shown an image"):
        trainer.train()


@pytest.mark.parametrize("support", ["full", "top_k"])
def test_the_teachers_log_probabilities_are_of_what_was_scored(
    make_trainer: MakeTrainer, text_data: Path, other_teacher: Path, support: str
) -> None:
    """Plain OPD over the whole vocabulary scores no more than the rollouts that are kept."""
    trainer = make_trainer(
        "text",
        OBJECTIVES["opd"](support=support),
        dataset=mixed(text_data),
        teachers={"odd": Teacher(str(other_teacher), sources=["odd"])},
        per_device_train_batch_size=6,
        rollouts_to_keep=6 if support == "top_k" else 2,
    )
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    found = [value for name, value in row.items() if name.startswith("logp/teacher:")]
    assert found
    assert all(value < -3 for value in found)  # untrained: no token of 640 is likely


def test_a_teacher_that_fails_ends_a_python_run_too(make_trainer: MakeTrainer, serve: Serve) -> None:
    server = serve()
    trainer = make_trainer(
        "text", OBJECTIVES["opd"](), teacher=ServedTeacher(server.address, ServerSettings(wait=0.4, timeout=2))
    )
    server.fault = lambda *_: (200, {"choices": [{"prompt_logprobs": []}]})
    with pytest.raises(TeacherLost, match=r"example '.*': prompt_logprobs has 0 entries"):
        trainer.train()
