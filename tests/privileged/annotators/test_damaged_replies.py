"""Replies on disk that are no longer what was written are asked for again; whole ones are not."""

import shutil
import sqlite3

import pytest
from annotating import KEY, configure, run, write_records
from answering import Answering
from privileged_samples import files_of

from privileged.annotators.cache import FILE, ReplyCache
from privileged.annotators.requests import Reply
from tests.damages import DAMAGES

COUNT = 30


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def test_whatever_befalls_them_the_set_is_the_same(tmp_path):
    server = Answering()
    with server.serving() as url:
        config = configure(write_records(tmp_path, COUNT), tmp_path / "out", url)
        run(config)
        undisturbed = files_of(tmp_path / "out")
        state = shutil.copytree(tmp_path / "out.replies", tmp_path / "state")
        assert set(files_of(state)) == {FILE}
        for kind, damage in DAMAGES.items():
            shutil.rmtree(tmp_path / "out")
            shutil.rmtree(tmp_path / "out.replies")
            shutil.copytree(state, tmp_path / "out.replies")
            damage(tmp_path / "out.replies" / FILE)
            before = len(server.bodies)
            _, said = run(config)
            assert files_of(tmp_path / "out") == undisturbed, kind
            asked = len(server.bodies) - before
            assert (f"{FILE}: was damaged" in said) == (asked > 0 and kind != "deleted"), kind
            assert asked == COUNT or kind not in ("zeroed", "deleted")


def test_one_reply_that_was_changed_is_asked_for_again_and_no_other(tmp_path):
    server = Answering()
    with server.serving() as url:
        config = configure(write_records(tmp_path, COUNT), tmp_path / "out", url)
        run(config)
        undisturbed = files_of(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        with sqlite3.connect(tmp_path / "out.replies" / FILE) as database:
            changed = (
                "UPDATE replies SET text = replace(text, 'Look', 'Book') WHERE key = (SELECT min(key) FROM replies)"
            )
            assert database.execute(changed).rowcount == 1
        _, said = run(config)
        assert len(server.bodies) == COUNT + 1
        assert f"{COUNT - 1} whole replies are kept" in said
        assert (tmp_path / "out.replies" / "damaged-1.sqlite").is_file(), "nothing that was paid for is deleted"
        assert files_of(tmp_path / "out") == undisturbed


def test_replies_of_before_there_were_checksums_are_taken(tmp_path):
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute(
            "CREATE TABLE replies (key TEXT PRIMARY KEY, text TEXT NOT NULL, problem TEXT, "
            "prompt_tokens INTEGER NOT NULL, reply_tokens INTEGER NOT NULL) WITHOUT ROWID"
        )
        database.execute("INSERT INTO replies VALUES ('a', 'text', NULL, 1, 2)")
    database.close()
    for _ in range(2):
        cache = ReplyCache(tmp_path)
        assert cache.find("a") == Reply("text", 1, 2, None)
        cache.add("b", Reply("other", 3, 4))
        assert cache.spent() == (4, 6)
        cache.close()
