"""evalscope: six text benchmarks. Its result is WORK/reports/MODEL/TASK.json, checked with 1.14.1.

What it has generated it keeps, and goes on from there.
"""

import json
from pathlib import Path
from typing import Any

from dopd_vl.harnesses.job import Adapter, Job, ResultError, Score, Step, combined, load_result, newest, number_at
from dopd_vl.harnesses.table import ScorePart


def _steps(job: Job) -> list[Step]:
    work = job.folder / "work"
    (task,) = {part.task for part in job.route.scores}
    argv = [str(job.environment / "bin" / "evalscope"), "eval", "--datasets", task]
    argv += ["--model-id", job.label, *_model(job), "--generation-config", json.dumps(_generation(job))]
    argv += ["--eval-batch-size", str(job.settings.batch_size), "--repeats", str(job.route.samples)]
    argv += ["--seed", str(job.benchmark.sampling.seed), "--work-dir", str(work), "--no-timestamp"]
    options = job.route.options
    if "subsets" in options:
        argv += ["--dataset-args", json.dumps({task: {"subset_list": options["subsets"]}})]
    if "hub" in options:
        argv += ["--dataset-hub", options["hub"]]
    if job.settings.limit is not None:
        argv += ["--limit", str(job.settings.limit)]
    if (work / "configs" / "task_config.yaml").is_file():  # an earlier run that was stopped
        argv += ["--use-cache", str(work)]
    return [Step(argv)]


def _model(job: Job) -> list[str]:
    if job.settings.backend == "server":
        return ["--model", job.served_name, "--api-url", job.settings.api_url, "--eval-type", "openai_api"]
    given = {"precision": "auto", "enable_thinking": False}
    return ["--model", job.model, "--model-args", json.dumps(given), "--eval-type", "llm_ckpt"]


def _generation(job: Job) -> dict[str, Any]:
    settings = job.sampling()
    settings["max_tokens"] = settings.pop("max_new_tokens")
    if job.settings.backend == "server":
        return {**settings, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    return {**settings, "do_sample": settings["temperature"] > 0}


def _read(job: Job) -> Score:
    parts, counts = {}, []
    for part in job.route.scores:
        file = newest(job.folder / "work" / "reports", f"{part.task}.json", job.harness.name)
        report = load_result(file)
        lost = (report.get("execution_summary") or {}).get("errored", 0)
        if lost:  # evalscope leaves them out of the score
            raise ResultError(f"{file}: {lost} questions were not answered; the same command asks for them again")
        value, responses = _metric(report, part, file)
        parts[part.task] = value
        counts.append(responses // job.route.samples)
    return combined(job, parts, sum(counts))


def _metric(report: dict[str, Any], part: ScorePart, file: Path) -> tuple[float, int]:
    names = []
    for metric in report.get("metrics") or []:
        identity = metric.get("identity") or {}
        names.append(f"{identity.get('name')} ({identity.get('aggregation')})")
        if (identity.get("name"), identity.get("aggregation")) != (part.metric, part.aggregation):
            continue
        count = int(number_at(metric, ["num"], file))
        if part.subset is None:
            return number_at(metric, ["score"], file), count
        for category in metric.get("categories") or []:
            for subset in category.get("subsets") or []:
                if subset.get("name") == part.subset:
                    return number_at(subset, ["score"], file), count
        raise ResultError(f"{file}: {part.metric} has no part {part.subset!r}")
    raise ResultError(f"{file}: no {part.metric} ({part.aggregation}); there is {', '.join(names) or 'nothing'}")


EVALSCOPE = Adapter(_steps, _read, ("transformers", "server"))
