"""One bar for every command: what it says on a terminal and off it."""

import io

import pytest
from rich.console import Console

from dopd_vl.common import progress
from dopd_vl.common.progress import Progress, live_bar


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
    assert (
        said.getvalue()
        == "preparing: begins, 100 records\npreparing: 40/100 records, 4 records/s, [red]2[/red] rejected, 15 s left\n"
    )


def test_slow_work_tells_the_seconds_of_one(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said), "train opd", 10, "steps", done=4) as bar:
        clock.now += 30
        bar.reach(6, "loss 0.5", say=True)
    assert (
        said.getvalue()
        == "train opd: begins, 10 steps, 4 done\ntrain opd: 6/10 steps, 15 s/step, loss 0.5, 60 s left\n"
    )


def test_what_an_earlier_run_did_does_not_count_in_the_rate(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said), "evaluate", 100, "responses", done=50) as bar:
        clock.now += 10
        bar.advance(25)
    assert (
        said.getvalue()
        == "evaluate: begins, 100 responses, 50 done\nevaluate: 75/100 responses, 2.5 responses/s, 10 s left\n"
    )


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


def test_off_a_terminal_long_work_says_something_less_and_less_often(clock: Clock) -> None:
    said = io.StringIO()
    with Progress(Console(file=said), "train opd", 100_000, "steps") as bar:
        for _ in range(100_000):
            clock.now += 1
            bar.advance()
    lines = said.getvalue().count("\n")
    assert 200 < lines < 450, "a day of work: every 10 seconds at first, every 5 minutes at last"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (140, ["━", "412/1500", "1.2 s/step", "loss 0.123", "rollouts 34%", "held-out 45.1%", "left"]),
        (80, ["412/1500", "rollouts 34%", "held-out 45.1%", "left"]),
        (50, ["412/1500", "held-out 45.1%"]),
        (30, ["412/1500"]),
    ],
)
def test_a_narrow_terminal_shows_what_matters_on_one_line_and_breaks_no_word(width: int, shown: list[str]) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    bar = live_bar(console)
    facts = "1.2 s/step, loss 0.123, rollouts 34%, held-out 45.1%"
    bar.add_task("train dopd-anchored", total=1500, completed=412, facts=facts)
    with console.capture() as drawn:
        console.print(bar.make_tasks_table(bar.tasks))
    (line,) = drawn.get().splitlines()
    assert "train dopd-anchored" in line
    assert "…" not in line
    assert all(text in line for text in shown)
