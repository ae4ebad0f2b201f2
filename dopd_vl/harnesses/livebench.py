"""LiveBench by its own runner, which asks a server. Its result is all_groups.csv, a row a model (b0fb577b)."""

import csv

from dopd_vl.harnesses.job import Adapter, Job, ResultError, Score, Step, combined

RESULT_FILE = "all_groups.csv"


def _steps(job: Job) -> list[Step]:
    sampling, (part,) = job.sampling(), job.route.scores
    shared = ["--bench-name", part.task, "--livebench-release-option", job.route.options["release"]]
    ask = [job.python, "run_livebench.py", *shared, "--model", job.served_name, "--model-display-name", job.label]
    ask += ["--api-base", job.settings.api_url, "--api-key", "EMPTY", "--resume"]
    ask += ["--max-tokens", str(sampling["max_new_tokens"]), "--force-temperature", str(sampling["temperature"])]
    ask += ["--parallel-requests", str(job.settings.batch_size)]
    show = [job.python, "show_livebench_result.py", *shared, "--model-list", job.label]
    if job.settings.limit is not None:
        ask += ["--question-end", str(job.settings.limit)]
        show += ["--ignore-missing-judgments"]
    # The runner starts `python` and writes into the folder it stands in.
    where, programs = job.source / "livebench", job.environment / "bin"
    copy = ["cp", RESULT_FILE, str(job.folder / RESULT_FILE)]
    return [Step(ask, where, programs), Step(show, where, programs), Step(copy, where)]


def _read(job: Job) -> Score:
    (part,) = job.route.scores
    file = job.folder / RESULT_FILE
    if not file.is_file():
        raise ResultError(f"livebench left no result: {file}")
    with file.open(encoding="utf-8", newline="") as opened:
        rows = {row["model"].lower(): row for row in csv.DictReader(opened) if row.get("model")}
    row = rows.get(job.label.lower())
    if row is None:
        raise ResultError(f"{file}: no row for {job.label}: answers are missing; the same command asks for them again")
    try:
        value = float(row[part.metric])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{file}: no number in column {part.metric!r}; columns: {', '.join(row)}") from error
    return combined(job, {part.metric: value}, None)


LIVEBENCH = Adapter(_steps, _read, ("server",))
