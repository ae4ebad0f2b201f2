"""Tables on a terminal: no cell is cut and no word is broken, however narrow it is."""

import io

import pytest

from dopd_vl.common.terminal import Terminal, show_table

HEAD = ("cell", "seeds", "held-out (95 %)", "less dopd-anchored", "why")
ROWS = [
    ("dopd-anchored with beta_light 0.3", "3", "51.2 ± 1.3", "+1.2 (-0.3 to +2.7)", "a reason of several words"),
    ("[bold]opd", "3", "40.0 ± 0.1", "", ""),
]
SUMS = [("teacher", "", "80.1", "", "")]


def shown(width: int, terminal: bool = True, rows: list[tuple[str, ...]] = ROWS) -> str:
    stream = io.StringIO()
    console = Terminal(file=stream, width=width, force_terminal=terminal, color_system=None)
    show_table(console, HEAD, rows, "Three methods", SUMS, prose=["why"])
    return stream.getvalue()


@pytest.mark.parametrize("width", [30, 50, 80, 100, 120, 200])
def test_every_word_is_whole_and_every_line_fits(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= max(width, len(ROWS[0][0]))
    words = text.replace("│", " ").replace("┃", " ").split()
    for row in (*ROWS, *SUMS):
        assert set(" ".join(row).split()) <= set(words)
    for name in (ROWS[0][0], ROWS[1][0], "teacher"):
        assert name in text, "a name stands on one line"
    assert ("┃" in text) == (width >= 100)


def test_a_file_has_the_table_whole_whatever_the_width() -> None:
    lines = shown(50, terminal=False).splitlines()
    assert [line for line in lines if all(cell in line for cell in ROWS[0])]
    assert [line for line in lines if all(name in line for name in HEAD)]


def test_control_characters_move_nothing() -> None:
    for width in (30, 200):
        assert "\x1b[31m" not in shown(width, rows=[("\x1b[31mred", "1", "2", "3", "4")])
