"""What the audit finds of the planted leaks, and that the page says so."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

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
