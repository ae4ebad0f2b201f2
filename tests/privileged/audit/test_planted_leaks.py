"""What the audit finds of the planted leaks, and that the page says so."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import judge  # noqa: E402
import leaks  # noqa: E402


def test_nearly_all_planted_leaks_are_found_and_hardly_a_good_hint_is_lost():
    suite = leaks.cases()
    planted, found, good, alarms = leaks.scores(suite)
    assert planted >= 200
    assert good >= 200
    assert found / planted >= 0.99
    assert found / (found + alarms) >= 0.99


def test_no_case_stands_twice_and_a_third_is_held_out():
    suite = leaks.cases()
    assert len({(case.prompt, case.answer, case.hint) for case in suite}) == len(suite)
    assert 0.25 < sum(case.held_out for case in suite) / len(suite) < 0.4


def test_the_page_holds_what_the_suite_gives_now():
    page = leaks.PAGE.read_text(encoding="utf-8")
    written = page.partition(leaks.BEGIN)[2].partition(leaks.END)[0]
    assert written.strip() == leaks.table(), "run `python benchmarks/leaks.py --write`"


def test_the_pairs_cover_many_languages_and_the_rules_raise_no_false_alarm_there():
    rows = judge.paired()
    assert len(rows) >= 120
    assert len({row["language"] for row in rows}) >= 14
    found = [judge.found_by_rules(row) for row in rows if row["kind"] == "hints"]
    assert sum(found[0::2]) / len(found[0::2]) >= 0.45, "of the leaks"
    assert not any(found[1::2]), "of the good hints"


def test_the_page_of_the_judge_holds_what_was_measured():
    page = judge.PAGE.read_text(encoding="utf-8")
    measured = json.loads(judge.RESULTS.read_text(encoding="utf-8"))
    assert len(measured["paired"]) == len(judge.paired())
    assert len(measured["planted"]) == len(judge.planted())
    written = page.partition(judge.BEGIN)[2].partition(judge.END)[0]
    assert written.strip() == judge.tables(measured), "run `python benchmarks/judge.py --write`"
