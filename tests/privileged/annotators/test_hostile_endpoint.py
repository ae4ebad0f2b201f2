"""A server that means harm, before the real command: it gets no memory, and nobody else the questions or the key."""

import json
import sqlite3

import pytest
import yaml
from annotating import KEY, lines, question_number, write_records
from answering import Answering, completion

from tests.commands import dopd_vl

MEMORY = 256 * 2**20


def annotated(folder, url, memory=None, retries=0):
    """`dopd-vl prepare` with annotation of the records in a folder."""
    asked = {"url": url, "model": "m", "key_env": "TEST_KEY", "retries": retries}
    settings = {
        "source": {"kind": "jsonl", "options": {"path": "records.jsonl"}, "default_task": "exact"},
        "output": "out",
        "max_rejected_share": 1.0,
        "annotate": {**asked, "parts": ["hints"], "recheck": False, "tries": 1, "timeout": 20.0, "concurrency": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return dopd_vl("prepare", "--config", "config.yaml", cwd=folder, env={"TEST_KEY": KEY}, memory=memory)


def reasons(folder):
    return [entry["reason"] for entry in lines(folder / "out" / "rejected.jsonl")]


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("times", [1, 2])
def test_a_packed_body_is_unpacked_to_the_limit_and_no_further(status, times, tmp_path):
    write_records(tmp_path, 2)
    with Answering(lambda *args: (status, times)).serving() as url:
        done = annotated(tmp_path, url, MEMORY)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    wanted = {(200, 1): "longer than", (400, 1): "answered 400", (200, 2): "'gzip, gzip'", (400, 2): "'gzip, gzip'"}
    assert all(wanted[status, times] in reason for reason in reasons(tmp_path))
    assert len(reasons(tmp_path)) == 2


def test_a_body_that_is_packed_once_is_read_although_plain_text_was_asked_for(tmp_path):
    write_records(tmp_path, 1)
    server = Answering(lambda *args: "gzip")
    with server.serving() as url:
        done = annotated(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert {name.lower(): value for name, value in server.headers[0].items()}["accept-encoding"] == "identity"


def test_a_redirect_takes_neither_questions_nor_key_to_another_server(tmp_path):
    write_records(tmp_path, 1)
    server, other = Answering(lambda *args: "elsewhere"), Answering()
    with server.serving() as url, other.serving() as elsewhere:
        server.elsewhere = f"{elsewhere}/chat/completions"
        done = annotated(tmp_path, url)
    assert done.returncode == 2
    assert "annotate.url" in done.stderr
    assert "another address" in done.stderr
    assert other.bodies == []


def test_a_key_that_a_reply_spells_in_escapes_is_in_no_file_and_no_line(tmp_path):
    write_records(tmp_path, 1, **{"privileged": {"caption": "A bird."}})
    with Answering(lambda *args: "repeats the key in escapes").serving() as url:
        done = annotated(tmp_path, url)
    spelt = "".join(f"\\u{ord(sign):04x}" for sign in KEY)
    assert "repeats the endpoint's key" in reasons(tmp_path)[0]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert all(text.encode() not in file.read_bytes() for text in (KEY, spelt)), file
    assert KEY not in done.stdout + done.stderr


def test_what_a_server_says_moves_nothing_on_a_terminal_and_ends_no_run(tmp_path):
    said = "x\x1b[2J[/red]\u202e\u200b\x9b"

    def hostile(part, body, seen):
        number = question_number(body) if part == "hints" else 0
        return [said.encode(), completion("x", refusal=said), json.dumps({"hints": [said] * 30})][number]

    write_records(tmp_path, 3)
    with Answering(hostile).serving() as url:
        done = annotated(tmp_path, url, retries=1)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "[/red]" in done.stderr
    printed = done.stdout + done.stderr + (tmp_path / "out" / "rejected.jsonl").read_text()
    assert all(sign.isprintable() or sign == "\n" for sign in printed)


@pytest.mark.parametrize("number", ["1e999", "-" + "9" * 400, "NaN", '"10"', "true", "9" * 5000])
def test_no_number_that_a_server_counts_with_ends_a_run(number, tmp_path):
    write_records(tmp_path, 1)
    body = json.dumps({"choices": [{"message": {"content": '{"hints": ["Look."]}'}}], "usage": {"prompt_tokens": "@"}})
    with Answering(lambda *args: body.replace('"@"', number).encode()).serving() as url:
        done = annotated(tmp_path, url)
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        with sqlite3.connect(tmp_path / "out.replies" / "replies.sqlite") as database:
            assert 0 <= database.execute("SELECT prompt_tokens FROM replies").fetchone()[0] < 10**9
    else:
        assert "is no JSON" in reasons(tmp_path)[0]
