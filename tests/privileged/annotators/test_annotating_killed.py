"""The real command, killed in the middle of annotation: what was answered and committed is never sent again."""

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from answering import Answering, mark
from privileged_samples import files_of
from rich.console import Console

from dopd_vl.common.configuration import read_config
from privileged.prepare.config import PrepareConfig
from privileged.prepare.prepare import prepare

ROOT = Path(__file__).parents[3]
KEY = "sk-secret-9f8e7d6c5b4a"
COUNT = 40


def write_config(folder, url, **annotate):
    rows = [
        {"id": f"r{number}", "prompt": f"Question {number}: which?", "answer": "a heron"} for number in range(COUNT)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "source": {"kind": "jsonl", "options": {"path": str(folder / "records.jsonl")}, "default_task": "exact"},
        "output": str(folder / "out"),
        "shard_size": 10,
        "max_rejected_share": 1.0,
        "annotate": {
            "url": url, "model": "m", "key_env": "ANNOTATE_TEST_KEY", "parts": ["hints"], "recheck": False,
            "concurrency": 4, **annotate,
        },
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    return folder / "c.yaml"


def start(config, *options):
    command = [sys.executable, "-m", "dopd_vl.cli", "prepare", "--config", str(config), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ANNOTATE_TEST_KEY": KEY}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )


def _heed_ctrl_c():
    """A shell that starts the tests in the background has them ignore it, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(config, *options):
    process = start(config, *options)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def wait_until(happened, process):
    end = time.monotonic() + 60
    while not happened() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def undisturbed_files(folder, monkeypatch):
    """What a run makes that nothing disturbs."""
    folder.mkdir()
    monkeypatch.setenv("ANNOTATE_TEST_KEY", KEY)
    with Answering().serving() as url:
        settings = read_config(PrepareConfig, ["--config", str(write_config(folder, url))], "test")
        prepare(settings, console=Console(file=io.StringIO()))
    return files_of(folder / "out")


def committed_marks(folder, name="out"):
    """The words that tell which requests the committed replies answer."""
    database = folder / f"{name}.replies" / "replies.sqlite"
    if not database.exists():
        return set()
    connection = sqlite3.connect(database)
    try:
        texts = [row[0] for row in connection.execute("SELECT text FROM replies")]
    finally:
        connection.close()
    return {json.loads(text)["hints"][0].removeprefix("Look for ").removesuffix(".") for text in texts}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the key in /proc")
def test_killed_in_the_middle_it_goes_on_without_paying_twice_and_the_key_shows_nowhere(tmp_path, monkeypatch):
    server = Answering(delay=0.1)
    said = []
    with server.serving() as url:
        config = write_config(tmp_path, url)
        titles, sent = set(), 0
        for wanted in (6, 15):  # killed at the start, and again later; the fifth request follows a committed reply
            process = start(config)
            wait_until(lambda least=sent + wanted: len(server.bodies) >= least, process)
            titles.add(Path(f"/proc/{process.pid}/cmdline").read_bytes())
            process.send_signal(signal.SIGKILL)
            said.append(process.communicate()[0])
            assert process.returncode == -signal.SIGKILL, said
            committed, sent = committed_marks(tmp_path), len(server.bodies)
            assert committed, "the kill came after some replies"
            server.delay = 0.02
        code, text = finish(config)
        said.append(text)
    assert code == 0, text
    assert not committed & {mark(raw) for raw in server.bodies[sent:]}, "committed replies are not asked for again"
    # A request whose reply was on the way when the kill came may be sent again, and only such: four at each kill.
    assert len(server.bodies) <= COUNT + 2 * 4
    assert set(Counter(map(mark, server.bodies))) == committed_marks(tmp_path)
    undisturbed, killed = undisturbed_files(tmp_path / "undisturbed", monkeypatch), files_of(tmp_path / "out")
    assert killed.keys() == undisturbed.keys()
    data = [name for name in killed if name.startswith("data/")]
    assert len(data) == 4
    assert all(killed[name] == undisturbed[name] for name in data)

    assert all(
        headers.get("authorization", headers.get("Authorization")) == f"Bearer {KEY}" for headers in server.headers
    ), "it was in use"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name.startswith("replies.sqlite") for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in "".join(said)
    assert not [title for title in titles if KEY.encode() in title]


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (401, 2, "the key is wrong or missing: "),
        (500, 2, "requests failed one after another"),
        (400, 2, "requests failed one after another"),
    ],
)
def test_a_server_that_repeats_the_key_in_its_errors_does_not_get_it_into_ours(tmp_path, fault, code, message):
    with Answering(lambda *args: fault).serving() as url:
        config = write_config(tmp_path, url, retries=0)
        found, said = finish(config)
    assert found == code
    assert message in said
    assert "your key is Bearer ***" in said
    assert KEY not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_dry_run_of_the_command_prints_the_estimate_and_writes_nothing(tmp_path):
    config = write_config(tmp_path, "http://127.0.0.1:9/v1")
    code, said = finish(config, "--annotate.dry_run", "true", "--annotate.budget.tokens", "1000")
    assert code == 0, said
    assert "annotation of 40 records: about 40 requests" in said
    assert "more than the budget of 1,000 tokens" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "records.jsonl"]


def test_a_misspelt_key_of_the_section_is_named_in_one_line(tmp_path):
    config = write_config(tmp_path, "http://127.0.0.1:9/v1", concurency=3)
    code, said = finish(config)
    assert code == 2
    assert "annotate.concurency" in said
    assert "did you mean 'annotate.concurrency'" in said
    assert said.count("\n") == 1


def test_stopped_by_ctrl_c_it_keeps_every_reply_that_came_and_says_one_line(tmp_path):
    server = Answering(delay=0.1)
    with server.serving() as url:
        config = write_config(tmp_path, url)
        process = start(config)
        wait_until(lambda: len(server.answered) >= 12, process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert said.rstrip().endswith("stopped; run the same command again to go on")
        assert "Traceback" not in said
        assert "exception" not in said.lower()
        sent, committed = len(server.bodies), committed_marks(tmp_path)
        assert len(committed) >= 8
        code, said = finish(config)
    assert code == 0, said
    assert not committed & {mark(raw) for raw in server.bodies[sent:]}


def test_parts_and_a_merge_that_were_killed_end_as_an_undisturbed_run(tmp_path, monkeypatch):
    server = Answering(delay=0.05)
    with server.serving() as url:
        config = write_config(tmp_path, url)
        for number in (1, 2):
            before, name = len(server.answered), f"out.part-{number}-of-2"
            process = start(config, "--part", f"{number}/2")
            wait_until(lambda least=before + 9: len(server.answered) >= least, process)
            process.kill()
            process.communicate()
            committed, sent = committed_marks(tmp_path, name), len(server.bodies)
            assert committed, "the kill came after some replies"
            code, said = finish(config, "--part", f"{number}/2")
            assert code == 0, said
            assert not committed & {mark(raw) for raw in server.bodies[sent:]}, "nothing is paid twice"
        process = start(config, "--merge", "true")
        wait_until((tmp_path / "out" / ".prepare" / "state.json").exists, process)
        process.kill()
        process.communicate()
        code, said = finish(config, "--merge", "true")
    assert code == 0, said
    undisturbed, killed = undisturbed_files(tmp_path / "undisturbed", monkeypatch), files_of(tmp_path / "out")
    assert killed.keys() == undisturbed.keys()
    same = {name for name in killed if name.startswith("data/") or name.endswith(".jsonl")}
    assert len(same) == 6
    assert all(killed[name] == undisturbed[name] for name in same)
