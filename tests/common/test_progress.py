"""One bar for every command: what it says on a terminal and off it."""

import io

import pytest
from rich.console import Console

from dopd_vl.common import progress
from dopd_vl.common.progress import Progress


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_off_a_terminal_a_line_now_and_then_says_rate_facts_and_time_left(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said, width=40), "preparing", 100, "records") as bar:
        clock.now += 5
        bar.advance(20, "1 rejected")  # not yet time for a line
        clock.now += 5
        bar.advance(20, "[red]2[/red] rejected")
    assert said.getvalue() == "preparing: 40/100 records, 4 records/s, [red]2[/red] rejected, 15 s left\n"


def test_slow_work_tells_the_seconds_of_one(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said), "train opd", 10, "steps", done=4) as bar:
        clock.now += 30
        bar.reach(6, "loss 0.5", say=True)
    assert said.getvalue() == "train opd: 6/10 steps, 15 s/step, loss 0.5, 60 s left\n"


def test_what_an_earlier_run_did_does_not_count_in_the_rate(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said), "evaluate", 100, "responses") as bar:
        bar.restore(50)
        clock.now += 10
        bar.advance(25)
    assert said.getvalue() == "evaluate: 75/100 responses, 2.5 responses/s, 10 s left\n"


def test_on_a_terminal_there_is_a_bar_and_no_line(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said, force_terminal=True, width=120), "preparing", 100, "records") as bar:
        clock.now += 20
        bar.advance(40, "2 rejected")
    text = said.getvalue()
    assert "preparing" in text
    assert "40/100" in text
    assert "2 records/s, 2 rejected" in text
    assert "s left" not in text.splitlines()[-1]
