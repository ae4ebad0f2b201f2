"""Scores are read from files that the harnesses themselves wrote, and commands are what those take.

The files in `results/` come from runs of lm-eval 0.4.13, lmms-eval 0.7.3 (its own MMMU-Pro code) and evalscope 1.14.1
(its own AIME25) on the nano models, of evalscope's ZebraLogic, LiveCodeBench and BFCLv3 with its mock model, all on a
handful of local questions, and from LiveBench's own summary of made-up verdicts. Machine details were taken out.
"""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.common.errors import UserError
from dopd_vl.evaluation.config import BenchmarkSettings
from dopd_vl.harnesses.job import Job, ResultError
from dopd_vl.harnesses.plan import ADAPTERS
from dopd_vl.harnesses.table import ScorePart, benchmarks, harnesses

RESULTS = Path(__file__).parent / "results"


def job_of(name: str, folder: Path, harness: str | None = None, scores: Any = None, **settings: Any) -> Job:
    benchmark = benchmarks()[name]
    route = benchmark.routes[harness] if harness else next(iter(benchmark.routes.values()))
    if scores is not None:
        route = replace(route, scores=scores)
    return Job(
        benchmark=benchmark,
        route=route,
        harness=harnesses()[route.harness],
        model="/models/student",
        label="tiny-0123abcd",
        environment=Path("/harnesses") / route.harness,
        folder=folder,
        settings=BenchmarkSettings(**settings),
    )


def keep(source: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(RESULTS / source, target))


def command_of(job: Job) -> dict[str, str]:
    """option -> what follows it, of a job's first command."""
    argv = ADAPTERS[job.harness.name].steps(job)[0].argv
    return {name: value for name, value in pairwise(argv) if name.startswith("--")}


def test_mmmu_pro_is_the_mean_of_its_two_formats(tmp_path: Path) -> None:
    assert [part.task for part in benchmarks()["MMMU-Pro"].routes["lmms-eval"].scores] == [
        "mmmu_pro_standard",
        "mmmu_pro_vision",
    ]
    scores = [ScorePart("tiny_pro_standard", "mmmu_acc,none"), ScorePart("tiny_pro_vision", "mmmu_acc,none")]
    job = job_of("MMMU-Pro", tmp_path, scores=scores)
    keep("lmms_eval_0.7.3_results.json", tmp_path / "results" / "models__student" / "20261125_175540_results.json")
    score = ADAPTERS["lmms-eval"].read(job)
    # 1 of 4 and 1 of 3 (rounded by the harness): the mean of the two, not 2 of 7.
    assert score.parts == {"tiny_pro_standard": 25.0, "tiny_pro_vision": pytest.approx(33.33, abs=0.01)}
    assert score.value == pytest.approx(29.17, abs=0.01)
    assert score.questions == 7


def test_ceval_by_likelihood_is_read_from_its_group(tmp_path: Path) -> None:
    job = job_of("C-Eval", tmp_path, "lm-eval", [ScorePart("ceval-tiny", "acc,none")])
    keep("lm_eval_0.4.13_results.json", tmp_path / "results" / "m" / "results_2026-11-25T09-48-54.118139.json")
    score = ADAPTERS["lm-eval"].read(job)
    assert score.value == pytest.approx(100 * 2 / 11)  # 1 of 6 and 1 of 5, by size
    assert score.questions == 11


def test_aime_averages_the_samples_and_counts_questions(tmp_path: Path) -> None:
    job = job_of("AIME25", tmp_path)
    job = replace(job, route=replace(job.route, samples=4))  # as the kept run was made
    keep("evalscope_1.14.1_aime25.json", tmp_path / "work" / "reports" / "tiny" / "aime25.json")
    score = ADAPTERS["evalscope"].read(job)
    assert (score.value, score.questions) == (15.0, 10)


def test_questions_that_were_not_answered_are_no_score(tmp_path: Path) -> None:
    file = keep("evalscope_1.14.1_aime25.json", tmp_path / "work" / "reports" / "tiny" / "aime25.json")
    report = json.loads(file.read_text())
    report["execution_summary"]["errored"] = 3
    file.write_text(json.dumps(report))
    with pytest.raises(ResultError, match="3 questions were not answered"):
        ADAPTERS["evalscope"].read(job_of("AIME25", tmp_path))


def test_another_metric_of_the_same_report_is_not_taken(tmp_path: Path) -> None:
    keep("evalscope_1.14.1_aime25.json", tmp_path / "work" / "reports" / "tiny" / "aime25.json")
    job = job_of("AIME25", tmp_path, scores=[ScorePart("aime25", "accuracy", aggregation="pass_at_k")])
    with pytest.raises(ResultError, match=r"no accuracy \(pass_at_k\); there is accuracy \(mean\)"):
        ADAPTERS["evalscope"].read(job)


@pytest.mark.parametrize(("name", "task"), [("ZebraLogic", "zebralogicbench"), ("LCBv5", "live_code_bench")])
def test_the_headline_is_taken_of_several_metrics(tmp_path: Path, name: str, task: str) -> None:
    file = keep(f"evalscope_1.14.1_{task}.json", tmp_path / "work" / "reports" / "tiny" / f"{task}.json")
    report = json.loads(file.read_text())
    # The kept runs have nothing right, so that the metrics could not be told apart.
    for number, metric in enumerate(report["metrics"]):
        metric["score"] = 0.25 if metric["identity"] == report["primary_metric_identity"] else 0.5 + number / 100
    file.write_text(json.dumps(report))
    assert len(report["metrics"]) == 2
    assert ADAPTERS["evalscope"].read(job_of(name, tmp_path)).value == 25.0


def test_bfcl_is_its_overall_and_not_the_mean_over_questions(tmp_path: Path) -> None:
    keep("evalscope_1.14.1_bfcl_v3.json", tmp_path / "work" / "reports" / "tiny" / "bfcl_v3.json")
    score = ADAPTERS["evalscope"].read(job_of("BFCLv3", tmp_path, backend="server"))
    # A mock that calls no function: non-live 1/2, live 1/6, multi-turn 0. Over questions it would be 4 of 34, 11.8.
    assert score.value == pytest.approx(100 * (1 / 2 + 1 / 6) / 3, abs=0.01)
    assert score.questions == 34


def test_livebench_is_the_mean_over_categories(tmp_path: Path) -> None:
    keep("livebench_b0fb577b_all_groups.csv", tmp_path / "all_groups.csv")
    assert ADAPTERS["livebench"].read(job_of("LiveBench", tmp_path, backend="server")).value == 53.1
    other = replace(job_of("LiveBench", tmp_path, backend="server"), label="another-01234567")
    with pytest.raises(ResultError, match="no row for another-01234567"):
        ADAPTERS["livebench"].read(other)


def test_autologi_is_the_mean_of_two_languages(tmp_path: Path) -> None:
    for name, verdicts in (("en", [1, 0, 0, 1, 0, 0]), ("cn", [1, 1, 0, 1])):
        rows = [{"acc": acc, "error": None, "extraction_failed": 0, "idx": i} for i, acc in enumerate(verdicts)]
        (tmp_path / f"{name}_eval_results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = ADAPTERS["autologi"].read(job_of("AutoLogi", tmp_path, backend="server"))
    assert score.value == pytest.approx((100 / 3 + 75) / 2)
    assert score.questions == 10
    (tmp_path / "responses_en.jsonl").write_text('{"gen": [""]}\n' * 7)
    with pytest.raises(ResultError, match="6 verdicts on 7 responses"):
        ADAPTERS["autologi"].read(job_of("AutoLogi", tmp_path, backend="server"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"results": {"realworldqa": {"exact_match,none": "N/A"}}}'])
def test_a_result_that_cannot_be_used_says_which_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "1_results.json").write_text(content)
    with pytest.raises(ResultError, match=r"1_results\.json"):
        ADAPTERS["lmms-eval"].read(job_of("RealWorldQA", tmp_path))


def test_a_scale_that_changed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    result = {"results": {"realworldqa": {"exact_match,none": 63.6}}}
    (tmp_path / "results" / "1_results.json").write_text(json.dumps(result))
    with pytest.raises(ResultError, match="6360 per cent; has the harness changed its scale"):
        ADAPTERS["lmms-eval"].read(job_of("RealWorldQA", tmp_path))


def test_qwen3_vl_is_sampled_as_its_makers_do(tmp_path: Path) -> None:
    command = command_of(job_of("MMStar", tmp_path, backend="vllm"))
    given = dict(pair.split("=") for pair in command["--gen_kwargs"].split(","))
    assert given == {
        "temperature": "0.7",
        "top_p": "0.8",
        "top_k": "20",
        "presence_penalty": "1.5",
        "repetition_penalty": "1.0",
        "max_new_tokens": "32768",
    }
    assert command["--seed"] == "3407"


def test_settings_that_a_backend_would_drop_are_not_passed_as_if_it_did_not(tmp_path: Path) -> None:
    assert "presence_penalty" not in command_of(job_of("MMStar", tmp_path))["--gen_kwargs"]
    assert "presence_penalty=1.5" in command_of(job_of("MMStar", tmp_path, backend="server"))["--gen_kwargs"]


def test_aime_is_asked_32_times_without_one_seed_for_all(tmp_path: Path) -> None:
    command = command_of(job_of("AIME25", tmp_path, backend="server"))
    assert int(command["--repeats"]) >= 32
    given = json.loads(command["--generation-config"])
    assert "seed" not in given
    assert (given["temperature"], given["top_p"], given["top_k"]) == (0.7, 0.8, 20)
    assert given["extra_body"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert "seed" in json.loads(command_of(job_of("MATH500", tmp_path, backend="server"))["--generation-config"])


def test_a_stopped_evalscope_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    assert "--use-cache" not in command_of(job_of("MATH500", tmp_path))
    (tmp_path / "work" / "configs").mkdir(parents=True)
    (tmp_path / "work" / "configs" / "task_config.yaml").write_text("")
    assert command_of(job_of("MATH500", tmp_path))["--use-cache"] == str(tmp_path / "work")


def test_a_folder_that_a_harness_would_read_wrongly_is_refused(tmp_path: Path) -> None:
    job = replace(job_of("MMStar", tmp_path), model="/models/lr=1,seed=2")
    with pytest.raises(UserError, match="rename the folder"):
        ADAPTERS["lmms-eval"].steps(job)


def test_the_table_respects_what_the_benchmarks_are_known_to_be_misread_for() -> None:
    table = benchmarks()
    assert [part.metric for part in table["ZebraLogic"].routes["evalscope"].scores] == ["puzzle_acc"]
    assert [part.metric for part in table["DynaMath"].routes["lmms-eval"].scores] == ["dynamath_average,none"]
    assert [part.metric for part in table["VSI-Bench"].routes["lmms-eval"].scores] == ["vsibench_overall,none"]
    assert table["AIME25"].routes["evalscope"].samples >= 32
    assert [part.subset for part in table["BFCLv3"].routes["evalscope"].scores] == ["OVERALL"]
    assert not table["C-Eval"].routes["evalscope"].likelihood
    assert table["C-Eval"].routes["lm-eval"].likelihood
