import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dopd_vl.cli import main
from dopd_vl.reporting.page import report_page
from dopd_vl.reporting.runs import read_runs

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--/*SCRIPT*/"


def _run(folder: Path, rollouts: bool = True, cut: bool = False, objective: str = "dopd") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"objective:\n  name: {objective}\nseed: 0\n")
    rows = [{"step": step, "eval_accuracy": step / 10, "token_share/LH": 0.5} for step in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + ('{"step": 3, "eval_acc' if cut else ""))
    if rollouts:
        record = {
            "step": 1,
            "id": HOSTILE,
            "response": HOSTILE,
            "correct": False,
            "answer": HOSTILE,
            "tokens": [HOSTILE, " "],
            "logp/teacher/privileged": [-0.5, 0.0],
            "gap": [1.0, 0.0],
            "weight": [1.0, 0.6],
        }
        if objective == "dopd":
            record["regime"] = [2, 0]
        (folder / "rollouts.jsonl").write_text(json.dumps(record) + "\n")
    return folder


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.data = ""
        self._in_data = False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self._in_data = ("id", "data") in attrs

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        self.data += data if self._in_data else ""


def _elements(page: str) -> _Elements:
    elements = _Elements()
    elements.feed(page)
    return elements


def test_hostile_text_stays_data_and_the_page_asks_for_nothing(tmp_path):
    elements = _elements(report_page(read_runs([_run(tmp_path / "a")])))
    assert elements.tags.count("script") == 2
    assert "img" not in elements.tags
    assert elements.links == []
    assert json.loads(elements.data)[0]["rollouts"][0]["tokens"][0] == HOSTILE


def test_a_metrics_line_cut_short_is_left_out_and_a_run_without_rollouts_renders(tmp_path):
    (run,) = read_runs([_run(tmp_path / "a", rollouts=False, cut=True)])
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert run.rollouts == []
    assert json.loads(_elements(report_page([run])).data)[0]["rollouts"] == []


def test_runs_are_grouped_by_a_key_of_their_configuration(tmp_path):
    runs = read_runs([_run(tmp_path / "a"), _run(tmp_path / "b", objective="opd")], "objective.name")
    assert [run.group for run in runs] == ["dopd", "opd"]


@pytest.mark.parametrize("extra", [[], ["--group", "objective.nme"]])
def test_what_is_no_run_or_no_key_is_named_in_one_line(tmp_path, capsys, extra):
    folder = _run(tmp_path / "a") if extra else tmp_path / "nothing"
    output = tmp_path / "report.html"
    assert main(["report", str(folder), "--output", str(output), *extra]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert not output.exists()


def test_a_browser_draws_the_page_and_runs_no_text_of_a_run(tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = tmp_path / "report.html"
    assert main(["report", str(_run(tmp_path / "a")), "--output", str(page)]) == 0
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60).stdout
    elements = _elements(dom)
    assert "<title>dopd-vl report</title>" in dom
    assert "img" not in elements.tags
    assert elements.tags.count("polyline") == 2
    assert 'class="token HT"' in dom
    assert 'class="token LH"' in dom


def test_what_is_no_number_leaves_a_gap_and_not_a_broken_page(tmp_path):
    folder = _run(tmp_path / "a")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    data = _elements(report_page(read_runs([folder]))).data
    assert json.loads(data, parse_constant=pytest.fail)[0]["metrics"] == [{"step": 1, "loss": None}]
