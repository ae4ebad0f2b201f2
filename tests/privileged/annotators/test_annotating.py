"""Annotation through a real server: what it makes, what it keeps, and what it costs."""

import json
from collections import Counter

import pytest
from annotating import KEY, configure, lines, question_number, run, write_records
from answering import Answering, part_of
from privileged_samples import files_of

from dopd_vl.common.errors import ConfigurationError, PrepareError
from privileged.annotators import asking
from privileged.annotators.settings import BudgetConfig, SamplingConfig
from privileged.dataset import load_privileged
from privileged.prepare.prepare import estimate_annotation


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(asking, "FIRST_DELAY", 0.02)
    monkeypatch.setenv("TEST_KEY", KEY)


def test_all_parts_are_made_checked_and_stored(tmp_path):
    parts = ["hints", "hints_executed", "hint_summary", "caption", "boxes", "wrong_hint"]
    path, server = write_records(tmp_path, 6, images=True), Answering()
    with server.serving() as url:
        result, said = run(configure(path, tmp_path / "out", url, annotate={"parts": parts, "recheck": True}))
    assert (result.records, result.rejected) == (6, 0)
    row = load_privileged(result.output, cache_dir=str(tmp_path / "hf"))[3]
    privileged = row["privileged"]
    assert privileged["hints"][1] == "Go on from there."
    assert privileged["boxes"][0]["bbox"] == pytest.approx([4.8, 6.4, 24.0, 19.2])  # of 48 x 32
    assert all(privileged[part] for part in parts)
    assert privileged["provenance"] == f"{', '.join(parts)} by m"
    assert len(server.bodies) == 6 * 6 * 2
    counts = result.audit["counts"]["annotated"]
    assert counts == {f"{part} {what}": 6 for part in parts for what in ("asked", "made")}
    assert "about 72 requests" in said
    assert "7,920 tokens" in said  # 72 x 110, what the server says it used


def test_images_go_out_as_they_are_stored(tmp_path):
    import base64

    path, server = write_records(tmp_path, 1, images=True), Answering()
    with server.serving() as url:
        run(configure(path, tmp_path / "out", url, annotate={"parts": ["caption"]}))
    image, text = json.loads(server.bodies[0])["messages"][1]["content"]
    start, _, data = image["image_url"]["url"].partition(",")
    assert start == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "0.png").read_bytes()
    assert "Question 0" in text["text"]


def test_what_the_source_brings_is_not_asked_for(tmp_path):
    path = write_records(tmp_path, 2, privileged={"hints": ["Mine."]})
    server = Answering()
    with server.serving() as url:
        kept, _ = run(configure(path, tmp_path / "kept", url, annotate={"parts": ["hints", "hint_summary"]}))
        replaced, _ = run(configure(path, tmp_path / "replaced", url, annotate={"replace": True}))
    parts = Counter(part_of(json.loads(raw)) for raw in server.bodies)
    assert parts == {"hint_summary": 2, "hints": 2}
    rows = [load_privileged(done.output, cache_dir=str(tmp_path / "hf"))[0]["privileged"] for done in (kept, replaced)]
    assert rows[0]["hints"] == ["Mine."]
    assert rows[0]["provenance"] == "source; hint_summary by m"
    assert rows[1]["hints"][0].startswith("Look for ")


def test_an_optional_part_that_fails_is_left_out_and_counted(tmp_path):
    path = write_records(tmp_path, 3)
    server = Answering(lambda part, body, seen: "refusal" if part == "wrong_hint" else None)
    with server.serving() as url:
        annotate = {"parts": ["hints", "wrong_hint"], "optional": ["wrong_hint"], "tries": 1}
        result, _ = run(configure(path, tmp_path / "out", url, annotate=annotate))
    assert (result.records, result.rejected) == (3, 0)
    assert result.audit["counts"]["annotated"] == {
        "hints asked": 3,
        "hints made": 3,
        "wrong_hint asked": 3,
        "wrong_hint dropped: reply": 3,
    }
    assert [drop["part"] for drop in lines(result.output / "dropped.jsonl")] == ["wrong_hint"] * 3


def test_a_part_that_the_model_calls_poor_is_dropped_with_its_reason(tmp_path):
    def fault(part, body, seen):
        poor = part == "check" and question_number(body) == 1
        return '<think>Hm.</think>{"verdict": "poor", "reason": "It states a result."}' if poor else None

    path, server = write_records(tmp_path, 3), Answering(fault)
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url, annotate={"recheck": True, "tries": 1}))
    (entry,) = lines(result.output / "rejected.jsonl")
    assert (entry["id"], entry["reason"]) == ("r1", "hints: recheck: It states a result.")
    (drop,) = lines(result.output / "dropped.jsonl")
    assert drop["value"][1] == "Go on from there."
    assert result.audit["counts"]["annotated"]["hints dropped: recheck"] == 1


def test_the_budget_stops_the_run_cleanly_and_the_next_run_goes_on(tmp_path):
    path, server = write_records(tmp_path, 40), Answering()
    sampling = SamplingConfig(max_tokens=50)
    with server.serving() as url:
        small = configure(
            path, tmp_path / "out", url, annotate={"budget": BudgetConfig(tokens=2500), "sampling": sampling}
        )
        with pytest.raises(PrepareError, match=r"annotate.budget: .* of 2,500 tokens are spent"):
            run(small)
        first = len(server.bodies)
        assert 10 <= first * 110 / 110 <= 2500 / 110, "never more than the budget"
        larger = configure(
            path, tmp_path / "out", url, annotate={"budget": BudgetConfig(tokens=10_000), "sampling": sampling}
        )
        result, said = run(larger)
    assert result.records == 40
    assert len(server.bodies) == 40, "nothing is paid twice"
    assert "annotation: 4,400 of 10,000 tokens" in said


def test_a_finished_set_is_made_again_from_the_cache_alone(tmp_path):
    path, server = write_records(tmp_path, 12), Answering()
    with server.serving() as url:
        first, _ = run(configure(path, tmp_path / "out", url, annotate={"recheck": True}))
        before = files_of(first.output)
        sent = len(server.bodies)
        run(configure(path, tmp_path / "out", url, annotate={"recheck": True}, shard_size=4, overwrite=True))
        run(configure(path, tmp_path / "out", url, annotate={"recheck": True}, overwrite=True))
    assert len(server.bodies) == sent
    assert files_of(first.output) == before


def test_with_worker_processes_the_result_is_the_same(tmp_path):
    path, server = write_records(tmp_path, 25, images=True), Answering()
    with server.serving() as url:
        alone, _ = run(configure(path, tmp_path / "alone", url, annotate={"cache": f"{tmp_path}/cache"}))
        sent = len(server.bodies)
        together, _ = run(configure(path, tmp_path / "more", url, annotate={"cache": f"{tmp_path}/cache"}, workers=2))
    assert files_of(alone.output) == files_of(together.output)
    assert len(server.bodies) == sent


def test_a_slow_record_holds_up_no_other(tmp_path):
    """While the first record waits for its reply, all others are asked and answered."""
    import threading

    release = threading.Event()
    others = []

    def fault(part, body, seen):
        if question_number(body) == 0:
            release.wait(20)
        else:
            others.append(1)
            if len(others) == 199:
                release.set()

    path, server = write_records(tmp_path, 200), Answering(fault)
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url, annotate={"timeout": 30.0}))
    assert release.is_set()
    assert load_privileged(result.output, cache_dir=str(tmp_path / "hf"))["id"][0] == "r0"


def test_no_more_requests_are_in_flight_than_allowed_and_nearly_all_are(tmp_path):
    path, server = write_records(tmp_path, 24), Answering(delay=0.3)
    with server.serving() as url:
        run(configure(path, tmp_path / "out", url, annotate={"concurrency": 6}))
    assert server.most_in_flight == 6


def test_two_records_that_ask_the_same_thing_at_once_pay_once(tmp_path):
    path = tmp_path / "records.jsonl"
    same = {"prompt": "Question 0: the same?", "answer": "yes", "task": "exact"}
    path.write_text("".join(json.dumps({"id": f"r{number}", **same}) + "\n" for number in range(5)))
    server = Answering(delay=0.1)
    with server.serving() as url:
        result, _ = run(configure(path, tmp_path / "out", url))
    assert len(server.bodies) == 1
    assert (result.records, result.rejected) == (1, 4)


def test_a_dry_run_counts_and_asks_nothing(tmp_path):
    path, server = write_records(tmp_path, 500), Answering()
    with server.serving() as url:
        prices = BudgetConfig(price_input=2.0, price_output=8.0, money=0.01)
        config = configure(path, tmp_path / "out", url, annotate={"recheck": True, "budget": prices})
        estimate = estimate_annotation(config)
    assert estimate.requests == 1000
    # Each hints prompt has some 1,000 characters of rules and example, each check somewhat more.
    assert 250 * 1000 < estimate.prompt_tokens < 500 * 1000
    text = "\n".join(estimate.lines())
    assert "at the prices given" in text
    assert "more than the budget of 0.01" in text
    assert not server.bodies
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "endpont"}, "annotate.kind: 'endpont' is unknown; did you mean 'endpoint'"),
        ({"parts": ["hint"]}, "annotate.parts: 'hint' is unknown; did you mean 'hints'"),
        ({"optional": ["boxes"]}, "annotate.optional: 'boxes' is unknown"),
        ({"url": "http://me:secret@host/v1"}, "annotate.url: must hold no user name"),
        ({"url": "ftp://host"}, "annotate.url"),
        ({"url": None}, "annotate.url"),
        ({"model": None}, "annotate.model"),
        ({"key_env": "NOT_SET_AT_ALL"}, "environment variable NOT_SET_AT_ALL is not set"),
        ({"concurrency": 0}, "annotate.concurrency"),
        ({"budget": BudgetConfig(money=1.0)}, "annotate.budget.money"),
        ({"prompts": "/nowhere"}, "annotate.prompts"),
        ({"kind": "detector"}, "annotate.parts: a detector alone"),
    ],
)
def test_a_wrong_setting_names_its_key(tmp_path, changes, message):
    with pytest.raises(ConfigurationError) as error:
        run(configure(write_records(tmp_path, 1), tmp_path / "out", "http://127.0.0.1:9/v1", annotate=changes))
    assert message in str(error.value)
    assert "secret" not in str(error.value)
