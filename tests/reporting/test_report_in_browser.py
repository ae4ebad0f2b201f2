"""The page in a browser: drawn, harmless, and to be used by keyboard, in the dark and on a phone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dopd_vl.cli import main
from tests.reporting.browser import BROWSER, Browser
from tests.reporting.folders import HOSTILE, run_folder

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [run_folder(folder / "a"), run_folder(folder / "b", objective="opd", accuracy=0.2)]
    assert main(["report", *map(str, runs), "--output", str(folder / "report.html")]) == 0
    return folder / "report.html"


def count(browser: Browser, selector: str) -> int:
    return browser.run(f"document.querySelectorAll({selector!r}).length")


def text(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector({selector!r}).innerText")


def choose(browser: Browser, label: str, option: str) -> None:
    """Pick an option of a select as a user would: it gets the event too."""
    browser.run(
        f"""(() => {{
            const labels = [...document.querySelectorAll("#filters label")];
            const select = labels.find((l) => l.firstChild.data.trim() === "{label}").querySelector("select");
            select.value = [...select.options].find((o) => o.text === "{option}").value;
            select.dispatchEvent(new Event("change"));
        }})()"""
    )


def test_the_page_is_drawn_without_complaint_and_no_text_of_a_run_is_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.title") == "dopd-vl report"
    assert count(browser, "#charts figure") == 2
    assert count(browser, "figure[class], #charts polyline") == 4  # two quantities of two runs
    assert count(browser, "#rollout .token.HT") == 1
    assert count(browser, "#rollout .token.LH") == 1
    assert count(browser, "img:not(.picture img)") == 0
    assert HOSTILE in text(browser, "#rollout")
    assert HOSTILE in text(browser, ".box")
    assert browser.problems == []


def test_tab_and_arrow_keys_reach_every_token_and_show_what_is_known_of_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('#filters').lastElementChild.previousElementSibling.focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.matches('#rollout .token:first-child')")
    shown = text(browser, "#detail")
    for expected in ("Token 1 of 2", "HT", "high gap, the teacher gives the token more", "A (nats)", "q_T", "0.6065"):
        assert expected in shown
    assert "loss (nats, weighted)" in shown
    assert "teacher/privileged (q_T)" in shown
    assert "0.900" in shown
    # The student's own list lacks what was said; without its log-probability there is nothing to add.
    assert count(browser, "#detail .sampled") == 1
    browser.press("ArrowRight")
    assert "Token 2 of 2" in text(browser, "#detail")
    browser.press("Home")
    assert "Token 1 of 2" in text(browser, "#detail")
    browser.press("End")
    browser.press("ArrowRight")  # there is none beyond the last
    assert "Token 2 of 2" in text(browser, "#detail")
    assert count(browser, "#rollout [tabindex='0']") == 1


def test_rollouts_are_filtered_by_answer_and_by_regime(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert "4 of 4 rollouts" in text(browser, "#filters")
    choose(browser, "Answer", "right")
    assert "2 of 4 rollouts" in text(browser, "#filters")
    assert "right" in text(browser, "#facts")
    choose(browser, "Regime", "HT")  # the other run's objective has no regimes
    assert "1 of 4 rollouts" in text(browser, "#filters")
    assert count(browser, "#rollout .dim") == 1
    choose(browser, "Regime", "HS")
    assert "0 of 4 rollouts" in text(browser, "#filters")
    assert "No rollout fits." in text(browser, "#facts")


def test_an_objective_without_regimes_has_its_own_quantity_in_colour(browser: Browser, page: Path) -> None:
    browser.open(page)
    choose(browser, "Run", "b")
    assert count(browser, "#rollout .below") == 1
    assert count(browser, "#rollout .above") == 1
    assert "-1.5" in text(browser, "#rollout")
    assert count(browser, "#key .token") == 0
    choose(browser, "Colour", "loss (nats, weighted)")
    assert "0.25" in text(browser, "#rollout")
    choose(browser, "Run", "a")  # what was chosen stays, where the rollout has it
    assert "0.25" in text(browser, "#rollout")


def test_the_image_has_its_boxes_and_each_view_its_prompt(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.querySelector('.picture img').naturalWidth") == 48
    assert browser.run("document.querySelector('.box').style.left") == "10%"
    assert browser.run("document.querySelector('.box').offsetWidth > 0")
    browser.run("document.querySelector('#seen input').click()")
    assert browser.run("document.querySelector('.box').offsetWidth") == 0
    browser.run("document.querySelectorAll('#seen details').forEach((d) => { d.open = true; })")
    shown = text(browser, "#seen")
    assert "student/plain sees the plain prompt" in shown
    assert "teacher/privileged sees box_label" in shown
    assert "add [7, 2]" in shown


def test_a_chart_is_read_off_by_arrow_keys_and_runs_are_switched_off(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('#charts svg').focus()")
    browser.press("ArrowRight", "ArrowRight")
    assert "step 2" in text(browser, "#charts .values")
    assert "b 40.0 %" in text(browser, "#charts .values")  # a share, as in the table of runs
    browser.run("document.querySelectorAll('#legend input')[1].click()")
    assert count(browser, "#charts polyline") == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.07738, 0.07912), ["0.0770", "0.0775", "0.0780", "0.0785", "0.0790", "0.0795"]),
        ((-12345.0, 8000.0), ["-15000", "-10000", "-5000", "0", "5000", "10000"]),
        ((1.5e-7, 9e-7), ["0", "2e-7", "4e-7", "6e-7", "8e-7", "1.0e-6"]),
        ((3.1e8, 3.2e8), ["3.10e+8", "3.12e+8", "3.14e+8", "3.16e+8", "3.18e+8", "3.20e+8"]),
        ((2.5, 2.5), ["0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        ((0.0, 0.0), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ((1.0, 1.0 + 1e-12), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_an_axis_has_round_numbers_that_enclose_the_values_and_are_whole(
    browser: Browser, tmp_path: Path, values: tuple[float, float], expected: list[str]
) -> None:
    folder = run_folder(tmp_path / "a", rollouts=False)
    rows = [{"step": step, "loss": value, "token_share/LH": 0.25 * step} for step, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", str(folder), "--output", str(tmp_path / "report.html")]) == 0
    for width in (390, 1280):
        browser.open(tmp_path / "report.html", width=width)
        charts = browser.run("""[...document.querySelectorAll("#charts figure")].map((figure) => ({
            ticks: [...figure.querySelectorAll("text.tick")].map((t) => t.textContent),
            across: figure.querySelectorAll("line.grid-line").length,
            cut: [...figure.querySelectorAll("text")].filter((t) => {
                const box = t.getBBox();
                return box.x < 0 || box.x + box.width > 320 || box.y + box.height > 174;
            }).map((t) => t.textContent),
        }))""")
        share, loss = charts
        assert share["cut"] == loss["cut"] == []
        assert share["ticks"][:3] == ["25 %", "30 %", "35 %"]
        assert loss["ticks"][: len(expected)] == expected
        assert loss["across"] >= len(expected) - 1
    assert browser.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, scheme=scheme)
    assert browser.run("document.documentElement.dataset.theme") == scheme
    ratios = browser.run("""(() => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const of = (node, name) => getComputedStyle(node)[name];
        const page = of(document.body, "backgroundColor");
        const colours = (node) => [of(node, "color"), of(node, "backgroundColor")];
        const seen = [...document.querySelectorAll("#key .token")].map(colours);
        for (const s of ["body", ".faint", ".verdict", "figcaption code"])
            seen.push([of(document.querySelector(s), "color"), page]);
        return seen.map(([front, back]) => contrast(light(front), light(back)));
    })()""")
    assert len(ratios) == 8
    assert min(ratios) >= 4.5  # WCAG 2.2, AA


@pytest.mark.parametrize("width", [375, 390, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width, height=800)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.run("document.querySelector('#rollout .token').focus()")
    assert browser.run("document.documentElement.scrollWidth") <= width
