"""A suite of benchmarks: planned, run in the harness's own environment, gathered beside the paper's rows."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.evaluation.estimates import gap_recovered
from dopd_vl.harnesses.comparison import Reference, as_markdown, gaps, reference
from dopd_vl.harnesses.plan import ADAPTERS, model_name
from dopd_vl.harnesses.suite import run_suite
from dopd_vl.harnesses.table import PAIRS, benchmarks, benchmarks_of, harnesses, paper_table
from tests.damages import DAMAGES, files_of

# Stands in for an environment's Python: it says its version, and writes what lmms-eval would, slowly if asked to.
HARNESS = """#!{python}
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
if arguments[0] == "-c":
    print("0.7.3")
    sys.exit()
value = dict(zip(arguments, arguments[1:]))
print("running", value["--tasks"], flush=True)
here = pathlib.Path(__file__).parent
(here / "pid.txt").write_text(str(os.getpid()))
with open(here / "calls.txt", "a") as calls:
    calls.write(value["--tasks"] + "\\n")
time.sleep(float((here / "seconds.txt").read_text()))
score = json.loads((here / "scores.json").read_text()).get(value["--tasks"])
if score is None:
    sys.exit("CUDA out of memory")
folder = pathlib.Path(value["--output_path"]) / "models__student"
folder.mkdir(parents=True, exist_ok=True)
(folder / "20261125_000000_results.json").write_text(json.dumps({{"results": {{value["--tasks"]: score}}}}))
"""
SCORES = {"realworldqa": {"exact_match,none": 0.65}, "mmstar": {"average,none": 0.6}}


@pytest.fixture
def harness(tmp_path: Path) -> Path:
    """The folder of programs of a harness that answers."""
    programs = tmp_path / "harnesses" / "lmms-eval" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(HARNESS.format(python=sys.executable))
    (programs / "python").chmod(0o755)
    (programs / "seconds.txt").write_text("0")
    (programs / "scores.json").write_text(json.dumps(SCORES))
    return programs


def config_of(tmp_path: Path, *arguments: str) -> EvaluateConfig:
    given = ["--suite", "RealWorldQA,MMStar", "--model", "nano:vision-student"]
    given += ["--benchmarks.environments", str(tmp_path / "harnesses"), *arguments]
    return read_config(EvaluateConfig, given, "test")


def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    from io import StringIO

    said = StringIO()
    code = run_suite(config_of(tmp_path, *arguments), tmp_path / "out", Console(file=said, width=200))
    return code, said.getvalue()


def _heed_ctrl_c() -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and the tests' children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def calls(harness: Path) -> list[str]:
    file = harness / "calls.txt"
    return file.read_text().split() if file.exists() else []


def test_what_is_installed_is_run_once_and_stands_beside_the_paper(tmp_path: Path, harness: Path) -> None:
    code, said = run(tmp_path)
    assert code == 0, said
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {name: result["score"] for name, result in scores["results"].items()} == {
        "RealWorldQA": 65.0,
        "MMStar": 60.0,
    }
    # By hand, from the paper's rows: (65 - 63.6) / (71.3 - 63.6), (60 - 58.4) / (70.7 - 58.4), and of the means.
    assert scores["gap_recovered"] == pytest.approx(
        {"RealWorldQA": 0.1818, "MMStar": 0.1301, "average": 0.15}, abs=1e-4
    )
    assert "| Qwen3-VL-2B (base), paper | 63.6 | 58.4 | 61.0 |" in (tmp_path / "out" / "results.md").read_text()
    assert run(tmp_path)[0] == 0
    assert calls(harness) == ["realworldqa", "mmstar"]


def test_a_dry_run_writes_every_command_and_runs_none(tmp_path: Path, harness: Path) -> None:
    code, _ = run(tmp_path, "--dry_run", "true")
    assert code == 0
    script = (tmp_path / "out" / "commands.sh").read_text()
    assert f"{harness / 'python'} -m lmms_eval --model qwen3_vl" in script
    assert "# not passed on by lmms-eval to transformers: presence_penalty" in script
    code, said = run(tmp_path, "--suite", "AIME25", "--dry_run", "true")
    assert code == 0
    assert "evalscope eval --datasets aime25" in (tmp_path / "out" / "commands.sh").read_text()
    assert "AIME25: no Python environment in" in said
    assert "pip install 'evalscope" in said
    assert calls(harness) == []
    subprocess.run(["bash", "-n", str(tmp_path / "out" / "commands.sh")], check=True)


def test_one_that_fails_is_told_with_its_last_words_and_the_rest_is_run(tmp_path: Path, harness: Path) -> None:
    (harness / "scores.json").write_text(json.dumps({"mmstar": SCORES["mmstar"]}))
    code, said = run(tmp_path)
    assert code == 1
    assert "RealWorldQA failed: lmms-eval ended with code 1" in said
    assert "CUDA out of memory" in said
    assert list(json.loads((tmp_path / "out" / "scores.json").read_text())["results"]) == ["MMStar"]
    (harness / "scores.json").write_text(json.dumps(SCORES))
    assert run(tmp_path)[0] == 0
    assert calls(harness) == ["realworldqa", "mmstar", "realworldqa"]


def test_one_that_fails_with_code_0_is_not_given_an_earlier_score(tmp_path: Path, harness: Path) -> None:
    # lmms-eval 0.7.3 does so, e.g. when the data cannot be fetched.
    assert run(tmp_path, "--suite", "MMStar")[0] == 0
    (tmp_path / "out" / "MMStar" / "result.json").unlink()
    program = (harness / "python").read_text()
    (harness / "python").write_text(program.replace('sys.exit("CUDA out of memory")', "sys.exit(0)"))
    (harness / "scores.json").write_text("{}")
    code, said = run(tmp_path, "--suite", "MMStar")
    assert code == 1
    assert "MMStar failed: lmms-eval left no result" in said
    assert "it said: running mmstar" in said


@pytest.mark.parametrize("name", ["job.json", "result.json"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_is_damaged_is_told_of_or_the_benchmark_is_run_again(
    tmp_path: Path, harness: Path, name: str, kind: str
) -> None:
    assert run(tmp_path, "--suite", "MMStar")[0] == 0
    scores = (tmp_path / "out" / "scores.json").read_bytes()
    DAMAGES[kind](tmp_path / "out" / "MMStar" / name)
    code, said = run(tmp_path, "--suite", "MMStar")
    if code == 1:
        assert str(tmp_path / "out" / "MMStar" / name) in "".join(said.split("\n"))
        assert run(tmp_path, "--suite", "MMStar", "--overwrite", "true")[0] == 0
    assert calls(harness) == ["mmstar", "mmstar"]
    again = json.loads((tmp_path / "out" / "scores.json").read_text())
    again["results"]["MMStar"]["seconds"] = json.loads(scores)["results"]["MMStar"]["seconds"]
    assert again == json.loads(scores)


def test_scores_of_a_trial_count_for_nothing(tmp_path: Path, harness: Path) -> None:
    assert run(tmp_path, "--benchmarks.limit", "8")[0] == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["gap_recovered"] == {}
    assert "| (65.0) | (60.0) |" in (tmp_path / "out" / "results.md").read_text()
    code, said = run(tmp_path)
    assert code == 1
    assert "holds a run with another limit" in said
    assert run(tmp_path, "--overwrite", "true")[0] == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["gap_recovered"] != {}


def test_our_own_base_and_teacher_take_the_place_of_the_papers(tmp_path: Path, harness: Path) -> None:
    own = tmp_path / "base.json"
    own.write_text(json.dumps({"results": {"RealWorldQA": {"score": 55.0, "limit": None}}}))
    run(tmp_path, "--benchmarks.base", str(own))
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["gap_recovered"] == pytest.approx({"RealWorldQA": 10 / 16.3, "average": 10 / 16.3})
    own.write_text("{}")
    with pytest.raises(UserError, match=r"benchmarks\.base: .*base\.json is not the scores\.json of a suite"):
        run(tmp_path, "--benchmarks.base", str(own))


def test_stopped_by_ctrl_c_it_ends_its_harness_and_goes_on_later(tmp_path: Path, harness: Path) -> None:
    (harness / "seconds.txt").write_text("60")
    command = [sys.executable, "-m", "dopd_vl.cli", "evaluate", "--suite", "RealWorldQA"]
    command += ["--model", "nano:vision-student", "--output_dir", str(tmp_path / "out")]
    command += ["--benchmarks.environments", str(tmp_path / "harnesses")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c
    )
    end = time.monotonic() + 60
    while not calls(harness) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "run the same command again" in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((harness / "pid.txt").read_text()), 0)
    assert not (tmp_path / "out" / "RealWorldQA" / "result.json").exists()
    (harness / "seconds.txt").write_text("0")
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    assert (tmp_path / "out" / "RealWorldQA" / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "MMU"), "did you mean 'MMMU'"),
        (("--suite", "MMMU,AIME25"), "AIME25 is of the paper's text table, MMMU of its vision table; run them apart"),
        (("--benchmarks.harness", "{MMStar: evalscope}"), "MMStar has no route by 'evalscope', known: lmms-eval"),
        (("--benchmarks.harness", "{AIME25: evalscope}"), "'AIME25' is not in the suite"),
        (("--model", "./nowhere"), "model: no folder"),
        (("--benchmarks.base", "nowhere.json"), r"benchmarks\.base: cannot read nowhere\.json"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises((ConfigurationError, UserError), match=message):
        run(tmp_path, *arguments)


def test_what_needs_a_server_or_leave_to_run_code_says_so(tmp_path: Path) -> None:
    _, said = run(tmp_path, "--suite", "paper-llm", "--dry_run", "true")
    for name in ("LiveBench", "AutoLogi", "BFCLv3"):
        assert f"{name}: needs benchmarks.backend server" in said


def test_every_benchmark_of_the_paper_has_a_route_whose_harness_and_adapter_exist() -> None:
    for pair in PAIRS:
        for name in benchmarks_of(f"paper-{pair}"):
            for harness in benchmarks()[name].routes:
                assert harness in harnesses()
                assert harness in ADAPTERS
    assert set(benchmarks()) == {name for pair in PAIRS for name in paper_table(pair).benchmarks}


def test_the_papers_rows_average_to_what_it_prints() -> None:
    # Of the text table's opcd row the paper prints 44.3, and its scores average to 44.4.
    import yaml

    from dopd_vl.common.resources import shipped

    printed = yaml.safe_load(shipped("data/paper_results.yaml").read_text(encoding="utf-8"))
    for pair in PAIRS:
        for row, scores in paper_table(pair).rows.items():
            assert len(scores) == 8
            assert sum(scores) / 8 == pytest.approx(printed[pair]["rows"][row]["average"], abs=0.11), row


def test_gap_recovered_is_of_what_all_three_have() -> None:
    assert gap_recovered(1.0, 2.0, 2.0) is None
    base, teacher = Reference({"a": 10.0, "b": 20.0}, "x"), Reference({"a": 20.0, "c": 1.0}, "x")
    assert gaps({"a": 15.0, "b": 30.0}, base, teacher) == {"a": 0.5, "average": 0.5}
    assert gaps({}, base, teacher) == {}


def test_the_papers_own_student_recovers_what_the_paper_says() -> None:
    paper = paper_table("vlm")
    ours = {name: {"score": s, "limit": None} for name, s in zip(paper.benchmarks, paper.rows["dopd"], strict=True)}
    references = [reference(paper, row, None) for row in ("student", "teacher")]
    table = as_markdown("ours", ours, paper.benchmarks, paper, *references)
    # (58.4 - 48.3) / (62.9 - 48.3) of the printed averages is 69 %.
    assert re.search(r"gap recovered .*\| 69% \|", table)
    assert "| **ours** | 67.4 |" in table


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen3-VL-2B-Instruct", "qwen3-vl-2b-instruct"), ("/runs/my run/student", "my-run"), ("/", "model")],
)
def test_models_have_names_that_are_folders_anywhere(model: str, name: str) -> None:
    assert model_name(model) == name


def test_a_harness_that_outlived_us_keeps_others_from_its_folder(tmp_path: Path, harness: Path) -> None:
    (harness / "seconds.txt").write_text("20")
    command = [sys.executable, "-m", "dopd_vl.cli", "evaluate", "--suite", "RealWorldQA"]
    command += ["--model", "nano:vision-student", "--output_dir", str(tmp_path / "out")]
    command += ["--benchmarks.environments", str(tmp_path / "harnesses")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not calls(harness) and time.monotonic() < end:
        time.sleep(0.1)
    process.kill()
    process.wait()
    try:
        before = files_of(tmp_path / "out")
        for options in ([], ["--benchmarks.limit", "8", "--overwrite", "true"]):
            second = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
            assert second.returncode == 2
            assert "another harness is writing here" in second.stderr
            after = files_of(tmp_path / "out")
            assert all(after[name] == before[name] for name in before if name != "commands.sh")
    finally:
        os.kill(int((harness / "pid.txt").read_text()), signal.SIGKILL)
