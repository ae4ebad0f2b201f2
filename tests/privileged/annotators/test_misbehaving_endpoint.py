"""A real server that misbehaves: nothing is lost, nothing doubled, and every failure has its reason."""

from collections import Counter

import pytest
from annotating import KEY, configure, lines, question_number, run, write_records
from answering import Answering
from privileged_samples import files_of

from dopd_vl.common.errors import PrepareError
from privileged.annotators import asking
from privileged.dataset import load_privileged


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(asking, "FIRST_DELAY", 0.02)
    monkeypatch.setenv("TEST_KEY", KEY)


FAULTS_THAT_PASS = [429, 500, 503, "slow", "cut", "not JSON", "no gzip", "endless error"]
FAULTS_FOR_GOOD = {
    "refusal": ("reply", "refused: I would rather not"),
    "no choices": ("reply", "no choices"),
    "repeats the key": ("reply", "repeats the endpoint's key"),
    "length": ("reply", "cut off at"),
    "long": ("reply", "more than the 100000 allowed"),
    "huge": ("request", "longer than"),
    400: ("request", "answered 400"),
    "Sure! Look closely.": ("reply", "is no JSON"),
    '{"hints": ["The answer is a heron."]}': ("audit", "answer_in_hint"),
    '{"hints": []}': ("reply", "0 hints"),
}


def misbehaving(part, body, seen):
    """Each of the first records meets a fault once, each of the next always, and the rest none."""
    number = question_number(body)
    if number < len(FAULTS_THAT_PASS):
        return FAULTS_THAT_PASS[number] if seen == 0 else None
    number -= len(FAULTS_THAT_PASS)
    return list(FAULTS_FOR_GOOD)[number] if number < len(FAULTS_FOR_GOOD) else None


def test_nothing_is_lost_or_doubled_when_the_server_misbehaves(tmp_path):
    path, server = write_records(tmp_path, 30), Answering(misbehaving)
    with server.serving() as url:
        config = configure(path, tmp_path / "out", url, annotate={"timeout": 2.0, "tries": 2})
        result, _ = run(config)
        again, _ = run(configure(path, tmp_path / "again", url, annotate={"timeout": 2.0, "cache": f"{tmp_path}/c"}))
    bad = range(len(FAULTS_THAT_PASS), len(FAULTS_THAT_PASS) + len(FAULTS_FOR_GOOD))
    rejected = lines(result.output / "rejected.jsonl")
    assert [entry["id"] for entry in rejected] == [f"r{number}" for number in bad]
    for entry, (stage, reason) in zip(rejected, FAULTS_FOR_GOOD.values(), strict=True):
        assert entry["stage"] == "annotate"
        assert entry["reason"].startswith(f"hints: {stage}: ")
        assert reason in entry["reason"]
    rows = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))
    assert rows["id"] == [f"r{number}" for number in range(30) if number not in bad]
    assert all(row["hints"] for row in rows["privileged"])
    # Bad replies were asked for twice, with another seed; what passed was answered once.
    answered = Counter(server.answered)
    assert set(answered.values()) == {2}, "once for each of the two preparations, which share no cache"
    dropped = Counter((drop["id"], drop["stage"]) for drop in lines(result.output / "dropped.jsonl"))
    for number, (stage, _) in zip(bad, FAULTS_FOR_GOOD.values(), strict=True):
        assert dropped[f"r{number}", stage] == (1 if stage == "request" else 2)
    assert files_of(again.output) == files_of(result.output), "the same replies give the same bytes"


def test_the_first_request_that_is_repeated_is_told_of_and_no_other(tmp_path):
    path, server = write_records(tmp_path, 20), Answering(lambda part, body, seen: None if seen else 500)
    with server.serving() as url:
        _, said = run(configure(path, tmp_path / "out", url))
    (told,) = [line for line in said.splitlines() if "the server answered 500" in line]
    assert told.endswith("each request is tried 5 times")
    assert KEY not in said


def test_an_error_that_never_ends_is_not_read_to_its_end(tmp_path):
    path, server = write_records(tmp_path, 1), Answering(lambda part, body, seen: None if seen else "endless error")
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url))
    assert result.records == 1
    assert server.error_bytes < 2**26, "what lies in the buffers of the connection, and no gigabyte"


def test_no_part_of_the_key_is_left_where_a_long_message_is_cut(tmp_path):
    path, server = write_records(tmp_path, 1), Answering(lambda *args: "a key at the cut")
    with server.serving() as url, pytest.raises(PrepareError, match="every record was rejected"):
        run(configure(path, tmp_path / "out", url, annotate={"retries": 0}))
    (entry,) = lines(tmp_path / "out" / "rejected.jsonl")
    assert "the response is no JSON: 'xxx" in entry["reason"]
    assert KEY[:4] not in entry["reason"]


def test_half_of_a_surrogate_pair_in_a_reply_ends_no_run(tmp_path):
    path, server = write_records(tmp_path, 1), Answering(lambda *args: "half a sign")
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url))
    row = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))[0]
    assert row["privileged"]["hints"] == ["Cut ?"]


def test_a_stand_in_for_a_key_is_a_word_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "look")
    path, server = write_records(tmp_path, 1), Answering(lambda *args: '{"hints": ["Now look for it."]}')
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url))
    row = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))[0]
    assert row["privileged"]["hints"] == ["Now look for it."]


def test_a_wrong_key_ends_the_run_at_once_and_names_no_key(tmp_path):
    path, server = write_records(tmp_path, 40), Answering(lambda *args: 401)
    with server.serving() as url, pytest.raises(PrepareError, match=r"answered 401, the key is wrong") as error:
        run(configure(path, tmp_path / "out", url))
    assert KEY not in str(error.value)
    assert len(server.bodies) < 40


def test_a_server_that_is_not_there_is_no_fault_of_the_few_records_that_are_asked_about(tmp_path):
    path, server = write_records(tmp_path, 2), Answering()
    config = configure(path, tmp_path / "out", "http://127.0.0.1:9/v1", annotate={"retries": 1})
    with pytest.raises(PrepareError, match=r"^annotate\.url: .* 2 times, and no request has reached it yet; start"):
        run(config)
    with server.serving() as url:
        config.annotate.url = url
        assert run(config)[0].records == 2


def test_an_endpoint_that_is_gone_ends_the_run_instead_of_rejecting_everything(tmp_path):
    path, server = write_records(tmp_path, 60), Answering(lambda *args: 500)
    with server.serving() as url:
        config = configure(path, tmp_path / "out", url, annotate={"retries": 0})
        with pytest.raises(PrepareError, match="requests failed one after another"):
            run(config)
        server.fault = lambda *args: None
        assert run(config)[0].records == 60
