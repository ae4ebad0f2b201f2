"""The judge of the audit, in real preparations: its numbers, what follows from them, and what it cannot judge."""

import io
import json
import math
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from annotating import KEY
from answering import Answering, completion
from privileged_samples import files_of, noise
from rich.console import Console

from dopd_vl.common.digests import dataset_parts
from dopd_vl.common.errors import ConfigurationError, PrepareError
from privileged.annotators import judging
from privileged.audit.audit import AuditConfig, JudgeConfig
from privileged.dataset import load_privileged
from privileged.model_settings import SamplingConfig
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare
from tests.commands import dopd_vl, start_dopd_vl

NANO = Path(__file__).parents[3] / "data" / "nano" / "models"
QUESTION = "Start with 4 0 5 5, then mirror. What is left?"
TEXTS = [
    {"prompt": QUESTION, "answer": "5 5 0 4", "privileged": {"hints": ["Turn the row round: 5 5 0 4 is left."]}},
    {"prompt": QUESTION + " Begin.", "answer": "5 5 0 4", "privileged": {"hints": ["Write down the row."]}},
    {
        "prompt": [{"role": "system", "content": "1"}, {"role": "user", "content": "小明有24颗糖，每人几颗？"}],
        "answer": "四",
        "privileged": {"hints": ["正好得到四颗糖。"], "hint_summary": "平均分。"},
    },
    {"prompt": "What is 7 + 2?", "answer": "9"},
]


def write(folder, rows):
    path = folder / "rows.jsonl"
    rows = [{"id": f"r{number}", "task": "exact", **row} for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig("jsonl", {"path": str(path)})


def local(name="text-teacher", **settings):
    return JudgeConfig(kind="local", model=str(NANO / name), dtype="float32", **settings)


def run(folder, rows, model, output="out", said=None, **audit):
    severity = {"answer_in_hint": "ignore", **audit.pop("severity", {})}  # it is the judge that is to find it
    config = PrepareConfig(
        write(folder, rows),
        str(folder / output),
        max_rejected_share=1.0,
        sample=0,
        audit=AuditConfig(severity=severity, model=model, **audit),
    )
    return prepare(config, console=Console(file=said or io.StringIO(), width=1000))


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_probability(model, tokenizer, messages, answer):
    """By hand: the template written out, and one pass of the model for each token of the answer."""
    import torch

    text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    ids = tokenizer(f"{text}<|im_start|>assistant\nThe answer is", add_special_tokens=False)["input_ids"]
    total = 0.0
    for token in tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += (logits[token] - torch.logsumexp(logits, 0)).item()
        ids.append(token)
    return total


def test_the_command_stores_the_illusion_score_that_an_independent_computation_gives(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = write(tmp_path, TEXTS)
    config = {
        "source": {"kind": source.kind, "options": source.options},
        "output": str(tmp_path / "out"),
        "audit": {
            "severity": {"answer_in_hint": "ignore"},
            "model": {"kind": "local", "model": str(NANO / "text-teacher"), "dtype": "float32"},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = dopd_vl("prepare", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "judge: " in done.stderr
    rows = load_privileged(tmp_path / "out", cache_dir=str(tmp_path / "hf"))

    model = AutoModelForCausalLM.from_pretrained(NANO / "text-teacher", dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(NANO / "text-teacher")

    def gain(row, shown):
        *before, last = row["prompt"]
        given = [*before, {**last, "content": f"{last['content']}\n\n{shown}"}]
        plain = log_probability(model, tokenizer, row["prompt"], row["answer"])
        return log_probability(model, tokenizer, given, row["answer"]) - plain

    by_hand = [
        gain(rows[0], "Hints:\n1. Turn the row round: 5 5 0 4 is left."),
        gain(rows[1], "Hints:\n1. Write down the row."),
        max(gain(rows[2], "Hints:\n1. 正好得到四颗糖。"), gain(rows[2], "Hint: 平均分。")),
    ]
    assert rows["illusion_score"][:3] == pytest.approx(by_hand, abs=1e-3)
    assert rows["illusion_score"][0] > rows["illusion_score"][1], "the leak gives more away than the clean hint"
    assert rows["illusion_score"][3] is None, "there is nothing to judge"
    counts = json.loads((tmp_path / "out" / "audit.json").read_text())["counts"]
    assert counts["illusion"] == {
        str(math.floor(score)): sum(math.floor(score) == math.floor(other) for other in by_hand) for score in by_hand
    }
    assert "| Illusion score (nats, rounded down) | records |" in (tmp_path / "out" / "README.md").read_text()


def test_captions_and_boxes_are_judged_by_a_model_that_sees_the_picture_and_by_one_that_does_not(tmp_path):
    noise(seed=1).save(tmp_path / "1.png")
    boxes = [{"label": "8", "bbox": [2, 2, 20, 20]}, {"label": "", "bbox": [22, 2, 40, 20]}]
    row = {"prompt": "<image>Which digit?", "answer": "8", "images": ["1.png"]}
    rows = [
        {**row, "id": "caption", "privileged": {"caption": "One digit: 8."}},
        {**row, "id": "both", "prompt": "Which digit is it?", "privileged": {"caption": "Noise.", "boxes": boxes}},
    ]
    for name in ("vision-teacher", "text-teacher"):
        result = run(tmp_path, rows, local(name), name)
        found = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))["illusion_score"]
        assert len(found) == 2
        assert all(math.isfinite(score) for score in found)
        assert "not_judged" not in result.audit["counts"]["findings"]


def test_a_record_beyond_the_limit_is_set_aside_with_its_number(tmp_path):
    scores = [row["illusion_score"] for row in rows_of(run(tmp_path, TEXTS, local()))]
    limit = max(0.0, (scores[0] + scores[1]) / 2)
    result = run(tmp_path, TEXTS, local(), "cut", max_illusion_score=limit)
    aside = {entry["id"]: entry["reason"] for entry in entries(result.output / "rejected.jsonl")}
    assert set(aside) == {f"r{number}" for number, score in enumerate(scores) if score is not None and score > limit}
    told = f"answer_given_away: with its hints the answer '5 5 0 4' is {scores[0]:.2f} nats likelier, more than"
    assert aside["r0"].startswith(told)
    kept = run(tmp_path, TEXTS, local(), "kept", max_illusion_score=limit, severity={"answer_given_away": "warn"})
    assert kept.records == len(TEXTS)
    assert kept.audit["counts"]["examples"]["answer_given_away"] == list(aside)


def rows_of(result):
    return [row for file in sorted((result.output / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


def test_what_was_judged_once_is_not_judged_again(tmp_path, monkeypatch):
    first = run(tmp_path, TEXTS, local(), said=(told := io.StringIO()))
    assert "judge: " in told.getvalue()

    def gone(settings):
        raise ConfigurationError("the model is not there any more")

    monkeypatch.setattr(judging, "load_model", gone)
    # Made again with another limit, from what the first preparation paid for.
    again = run(tmp_path, TEXTS, local(cache=str(tmp_path / "out.judged")), "again", max_illusion_score=1000.0)
    assert rows_of(again) == rows_of(first)
    with pytest.raises(ConfigurationError, match="not there any more"):
        run(tmp_path, [{**TEXTS[0], "answer": "5 5 0 5"}], local(cache=str(tmp_path / "out.judged")), "new")


def test_parts_and_workers_come_to_the_same(tmp_path):
    source = write(tmp_path, TEXTS)
    audit = AuditConfig(severity={"answer_in_hint": "ignore"}, model=local(), max_illusion_score=3.0)

    def made(output, **settings):
        config = PrepareConfig(
            source, str(tmp_path / output), shard_size=2, max_rejected_share=1.0, audit=audit, **settings
        )
        return prepare(config, console=Console(file=io.StringIO()))

    whole = made("whole")
    for part in ("1/2", "2/2"):
        made("parts", part=part)
    assert files_of(made("parts", merge=True).output) == files_of(whole.output)
    assert files_of(made("workers", workers=1).output) == files_of(whole.output)


def test_a_killed_preparation_goes_on_and_ends_as_an_undisturbed_one_does(tmp_path):
    rows = [{**TEXTS[0], "prompt": f"Start with {number} 0 5 5, then mirror. What is left?"} for number in range(30)]
    config = {
        "source": {"kind": "jsonl", "options": write(tmp_path, rows).options},
        "shard_size": 3,
        "audit": {
            "severity": {"answer_in_hint": "ignore"},
            "model": {"kind": "local", "model": str(NANO / "text-teacher"), "dtype": "float32"},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def command(output):
        return start_dopd_vl("prepare", "--config", tmp_path / "config.yaml", "--output", tmp_path / output)

    undisturbed = command("undisturbed")
    process = command("killed")
    while not (tmp_path / "killed" / ".prepare" / "shard-00001.json").exists() and process.process.is_alive():
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    process.result(60)
    assert not (tmp_path / "killed" / "audit.json").exists(), "it was killed before its end"
    judged = count_of(tmp_path / "killed.judged")
    assert judged >= 12, "two answers for each record of the committed shards"
    assert command("killed").result().returncode == undisturbed.result().returncode == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")
    assert count_of(tmp_path / "killed.judged") == 60


def count_of(cache):
    with closing(sqlite3.connect(cache / "replies.sqlite")) as database:
        return database.execute("SELECT count(*) FROM replies").fetchone()[0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "x" * 2001}, "its answer has 2001 characters, more than 2000"),
        ({"answer": '{"assert_case": ["assert f(1) == 2"]}', "task": "code"}, "its answer is tests"),
    ],
)
def test_what_cannot_be_judged_is_counted_and_said(tmp_path, row, reason):
    rows = [TEXTS[0], {**TEXTS[1], **row}]
    result = run(tmp_path, rows, local())
    assert result.audit["counts"]["findings"] == {"not_judged": 1}
    assert result.audit["counts"]["examples"]["not_judged"] == ["r1"]
    assert [row["illusion_score"] is None for row in rows_of(result)] == [False, True]
    strict = run(tmp_path, rows, local(), "strict", severity={"not_judged": "reject"})
    (entry,) = entries(strict.output / "rejected.jsonl")
    assert entry["reason"].startswith(f"not_judged: {reason}")


def test_a_model_that_refuses_a_record_costs_no_other(tmp_path):
    import shutil

    shutil.copytree(NANO / "text-teacher", tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    refusing = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{%- endif %}"
    template.write_text(refusing + template.read_text())
    model = JudgeConfig(kind="local", model=str(tmp_path / "model"), dtype="float32")
    result = run(tmp_path, TEXTS, model, severity={"not_judged": "reject"})
    (entry,) = entries(result.output / "rejected.jsonl")
    assert entry["id"] == "r2"
    assert "no system role" in entry["reason"]


def scoring(part, body, seen):
    """A server as vLLM is: a token is a word; one of the answer that stands in the prompt has -0.5, another -3."""
    asked = body["messages"][-1]["content"].split()
    before = " ".join(str(message["content"]) for message in body["messages"][:-1]).split()
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    reply = {**completion("."), "usage": {"prompt_tokens": len(before) + len(asked), "completion_tokens": 1}}
    if "prompt_logprobs" in body:
        places = [None, *({"7": {"logprob": -9.0}} for _ in before[1:])]
        places += [{"7": {"logprob": -0.5 if word in before else -3.0, "rank": 1}} for word in asked]
        reply["prompt_logprobs"] = places
    return reply


def test_an_endpoint_that_gives_the_log_probabilities_of_a_prompt_measures(tmp_path):
    rows = [
        {"prompt": "Which bird?", "answer": "grey heron", "privileged": {"hints": ["A grey heron it is."]}},
        {"prompt": "Which bird is it?", "answer": "grey heron", "privileged": {"hints": ["Look at its grey legs."]}},
    ]
    server = Answering(scoring)
    with server.serving() as url:
        model = JudgeConfig(url=url, model="m", key_env=None, sampling=SamplingConfig(extra={"add_special": 1}))
        result = run(tmp_path, rows, model)
        sent = len(server.bodies)
        run(tmp_path, rows, JudgeConfig(**{**vars(model), "cache": str(tmp_path / "out.judged")}), "again")
    assert [row["illusion_score"] for row in rows_of(result)] == [5.0, 2.5]
    assert len(server.bodies) == sent == 8, "with and without the hint, each without and with the answer"
    assert json.loads(server.bodies[0])["add_special"] == 1


def test_an_endpoint_and_this_process_measure_the_same_of_one_model(tmp_path):
    """The server has the model, its template and its tokens; it gives what vLLM gives of them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(NANO / "text-teacher", dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(NANO / "text-teacher")

    def served(part, body, seen):
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, continue_final_message=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            said = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [{str(token): {"logprob": said[at, token].item()}} for at, token in enumerate(ids[1:])]
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {**completion("."), "usage": usage, "prompt_logprobs": [None, *places]}

    with Answering(served).serving() as url:
        there = run(tmp_path, TEXTS, JudgeConfig(url=url, model="m", key_env=None), "there")
    here = [row["illusion_score"] for row in rows_of(run(tmp_path, TEXTS, local(), "here"))]
    assert [row["illusion_score"] for row in rows_of(there)][:3] == pytest.approx(here[:3], abs=1e-3)


@pytest.mark.parametrize(
    ("begins", "logprob"),
    [(3, -(10**400)), (3, [KEY]), (3, KEY), (3, float("nan")), (-1, -1.0), (10**400, -1.0)],
)
def test_whatever_numbers_an_endpoint_gives_the_record_is_not_judged_and_the_run_goes_on(
    begins, logprob, tmp_path, monkeypatch
):
    def numbered(part, body, seen):
        usage = {"prompt_tokens": begins, "completion_tokens": 1}
        return {**completion("."), "usage": usage, "prompt_logprobs": [None, *({"7": {"logprob": logprob}},) * 5]}

    monkeypatch.setenv("TEST_KEY", KEY)
    with Answering(numbered).serving() as url:
        result = run(tmp_path, TEXTS[:1], JudgeConfig(url=url, model="m", key_env="TEST_KEY", retries=0))
    assert result.audit["counts"]["findings"]["not_judged"] == 1
    assert [row["illusion_score"] for row in rows_of(result)] == [None]
    assert KEY not in (result.output / "audit.json").read_text()


def test_an_endpoint_without_log_probabilities_is_told_of_at_once(tmp_path):
    server = Answering(lambda part, body, seen: completion("The answer is here."))
    with server.serving() as url, pytest.raises(PrepareError, match=r"audit\.model\.ask: .* set ask: question"):
        run(tmp_path, TEXTS, JudgeConfig(url=url, model="m", key_env=None))


def test_a_model_that_is_asked_says_what_is_given_away(tmp_path):
    def verdict(part, body, seen):
        said = body["messages"][1]["content"]
        if "평균" in said:
            return "I would rather not say."
        poor = "5 5 0 4 is left" in said
        return json.dumps({"verdict": "poor" if poor else "good", "reason": "It states the row."})

    rows = [
        *TEXTS[:2],
        {"prompt": "몇 개?", "answer": "5", "privileged": {"hints": ["평균"]}},
        {**TEXTS[1], "prompt": "Then?", "privileged": {"hints": ["평균"], "hint_summary": "5 5 0 4 is left."}},
    ]
    server = Answering(verdict)
    with server.serving() as url:
        result = run(tmp_path, rows, JudgeConfig(url=url, model="m", key_env=None, ask="question"))
    assert {entry["id"]: entry["reason"] for entry in entries(result.output / "rejected.jsonl")} == {
        "r0": "answer_given_away: its hints: It states the row.",
        "r3": "answer_given_away: its hint_summary: It states the row.",
    }
    assert result.audit["counts"]["examples"]["not_judged"] == ["r2", "r3"]
    assert [row["illusion_score"] for row in rows_of(result)] == [None, None]


def test_what_annotation_makes_is_judged_too(tmp_path):
    from privileged.annotators.settings import AnnotateConfig

    server = Answering(lambda part, body, seen: json.dumps({"hints": ["Turn the row round: 5 5 0 4 is left."]}))
    with server.serving() as url:
        annotate = AnnotateConfig(url=url, model="m", key_env=None, recheck=False)
        audit = AuditConfig(severity={"answer_in_hint": "ignore"}, model=local())
        source = write(tmp_path, [{"prompt": QUESTION, "answer": "5 5 0 4"}])
        config = PrepareConfig(source, str(tmp_path / "made"), sample=0, annotate=annotate, audit=audit)
        made = prepare(config, console=Console(file=io.StringIO()))
    (own,) = rows_of(run(tmp_path, TEXTS[:1], local(), "own"))
    assert [row["illusion_score"] for row in rows_of(made)] == [own["illusion_score"]]


def test_a_set_of_before_there_was_a_judge_is_read_and_not_made_again(tmp_path):
    result = run(tmp_path, TEXTS, None)
    (file,) = (result.output / "data").iterdir()
    table = pq.read_table(file)
    assert table["illusion_score"].null_count == len(TEXTS)
    now = dataset_parts(load_privileged(result.output, cache_dir=str(tmp_path / "now")))
    pq.write_table(table.drop_columns("illusion_score"), file)
    audit = json.loads((result.output / "audit.json").read_text())
    for key in ("digest", "digests", "checksum"):  # of before there were digests, too
        del audit[key]
    (result.output / "audit.json").write_text(json.dumps(audit))
    rows = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))
    assert rows["illusion_score"][:] == [None] * len(TEXTS)
    assert dataset_parts(rows) == now == dataset_parts(rows.remove_columns("illusion_score")), "runs on it go on"
    assert run(tmp_path, TEXTS, None).was_complete
    with pytest.raises(PrepareError, match="other settings"):
        run(tmp_path, TEXTS, local())


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"max_illusion_score": 2.0}, "audit.max_illusion_score: needs audit.model"),
        ({"model": JudgeConfig(kind="local")}, "audit.model.model: kind local needs a model"),
        ({"model": JudgeConfig(model="m")}, "audit.model.url: kind endpoint needs an address"),
        ({"model": JudgeConfig(kind="detector", model="m")}, "audit.model.kind: 'detector' is unknown"),
        ({"model": local(ask="nicely")}, "audit.model.ask: 'nicely' is unknown"),
        ({"model": local(ask="question"), "max_illusion_score": 2.0}, "with ask: log_probability"),
        ({"model": JudgeConfig(kind="local", model="/nowhere/at-all")}, "audit.model.model: /nowhere/at-all cannot"),
        (
            {"model": JudgeConfig(url="http://127.0.0.1:9/v1", model="m", key_env="NOT_SET_AT_ALL")},
            "audit.model.key_env",
        ),
    ],
)
def test_a_wrong_setting_names_its_key(tmp_path, audit, message):
    with pytest.raises(ConfigurationError) as error:
        run(tmp_path, TEXTS, audit.pop("model", None), **audit)
    assert message in str(error.value)
