"""Run a suite of benchmarks, each in its harness's own environment, and gather the scores.

OUTPUT/commands.sh                every command, also of what cannot be run here
OUTPUT/BENCHMARK/job.json         what is run; written first
OUTPUT/BENCHMARK/log.txt          what the harness says
OUTPUT/BENCHMARK/result.json      written last: this benchmark is done, and is not run again
OUTPUT/scores.json, results.md    gathered from the results that there are
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from dopd_vl.common.digests import sealed, unsealed
from dopd_vl.common.files import exclusive, make_folder, read_json, write_atomically, write_json, writing_to
from dopd_vl.common.processes import end_group
from dopd_vl.common.terminal import show, tell
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.harnesses.comparison import BASE, TEACHER, as_markdown, gaps, reference
from dopd_vl.harnesses.job import Job, ResultError, Step
from dopd_vl.harnesses.plan import Planned, plan_suite, script_of
from dopd_vl.harnesses.table import benchmarks_of, pair_of, paper_table

JOB_FILE, RESULT_FILE, LOG_FILE = "job.json", "result.json", "log.txt"
_SECONDS_TO_END = 30.0
_LOG_LINES = 3
_LINE_LENGTH = 200


def run_suite(config: EvaluateConfig, folder: Path, console: Console) -> int:
    """Run what can be run and print the table; 1 where a harness failed or nothing could be run, else 0."""
    names = benchmarks_of(config.suite)
    settings = config.benchmarks
    paper = paper_table(pair_of(names))
    base, teacher = reference(paper, BASE, settings.base), reference(paper, TEACHER, settings.teacher)
    planned = plan_suite(config, names, folder)
    make_folder(folder)
    with exclusive(folder, "evaluation"):
        with writing_to(folder):
            write_atomically(folder / "commands.sh", script_of(planned))
        _say_obstacles(planned, console)
        tell(console, f"commands: {folder / 'commands.sh'}")
        if config.dry_run:
            return 0
        results, failed = _run_all(planned, config.overwrite, console)
        table = as_markdown(planned[0].job.label, results, names, paper, base, teacher)
        whole = {name: result["score"] for name, result in results.items() if result["limit"] is None}
        gathered = {
            "model": config.model,
            "label": planned[0].job.label,
            "pair": paper.pair,
            "base": base.origin,
            "teacher": teacher.origin,
            "results": results,
            "gap_recovered": gaps(whole, base, teacher),
        }
        write_atomically(folder / "results.md", table)
        write_json(folder / "scores.json", gathered)
    show(console, Markdown(table))
    tell(console, f"{len(results)} of {len(names)} benchmarks scored: {folder}")
    return 1 if failed or not results else 0


def _say_obstacles(planned: Sequence[Planned], console: Console) -> None:
    told = set()
    for one in planned:
        if one.obstacle is not None:
            tell(console, f"{one.job.benchmark.name}: {one.obstacle}")
        elif one.environment.version != one.job.harness.version:
            line = f"{one.job.harness.name}: {one.environment.version} is installed; its results are read as those of "
            if one.job.harness.name not in told:
                tell(console, line + one.job.harness.version)
            told.add(one.job.harness.name)
    for environment in {one.environment.folder: one.environment for one in planned}.values():
        if environment.missing is not None:
            tell(console, f"to install {environment.harness.name}:")
            for command in environment.install():
                tell(console, f"  {command}")


def _run_all(planned: Sequence[Planned], overwrite: bool, console: Console) -> tuple[dict[str, Any], bool]:
    """Results by benchmark, and whether a harness failed. One that fails does not keep the others from running."""
    results, failed = {}, False
    for number, one in enumerate(planned, start=1):
        name = one.job.benchmark.name
        try:
            done = _finished(one, overwrite)
            if done is None and one.obstacle is None:
                tell(console, f"{number}/{len(planned)} {name}: {one.job.harness.name}, {one.job.folder / LOG_FILE}")
                done = _run(one, console)
        except ResultError as error:
            failed = True
            tell(console, f"{name} failed: {error}")
            continue
        if done is not None:
            results[name] = done
    return results, failed


def _finished(one: Planned, overwrite: bool) -> dict[str, Any] | None:
    """The result of an earlier run of the same; what another run left is an error, or to be discarded."""
    folder, identity = one.job.folder, one.identity()
    begun = unsealed(read_json(folder / JOB_FILE))
    if begun == identity:
        return unsealed(read_json(folder / RESULT_FILE))
    if overwrite or not any((folder / name).exists() for name in (JOB_FILE, RESULT_FILE)):
        return None
    if begun is None:
        raise ResultError(f"{folder / JOB_FILE} is missing or damaged; run it anew with --overwrite true")
    key = next(key for key in sorted({*begun, *identity}) if begun.get(key) != identity.get(key))
    raise ResultError(f"{folder} holds a run with another {key}; choose another output_dir, or give --overwrite true")


def _run(one: Planned, console: Console) -> dict[str, Any]:
    """Raises: UserError: the harness of a run that was killed still writes here."""
    one.job.folder.mkdir(parents=True, exist_ok=True)
    with exclusive(one.job.folder, "harness") as lock:
        if unsealed(read_json(one.job.folder / JOB_FILE)) != one.identity():
            _empty(one.job.folder)
        return _run_locked(one, lock, console)


def _empty(folder: Path) -> None:
    """Not the folder itself: the lock is on it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _run_locked(one: Planned, lock: int, console: Console) -> dict[str, Any]:
    job, started = one.job, time.monotonic()
    write_json(job.folder / JOB_FILE, sealed(one.identity()))
    # Some harnesses end with 0 when they failed: what an earlier run left must not be taken for this one's.
    shutil.rmtree(job.folder / "results", ignore_errors=True)
    with console.status(Text(job.benchmark.name)) as status:
        for step in one.steps():
            _run_step(job, step, lock, lambda: status.update(Text(_under_way(job, started))))
    try:
        score = one.adapter.read(job)
    except ResultError as error:
        raise ResultError(f"{error}; it said: {_last_lines(job)} ({job.folder / LOG_FILE})") from error
    result = {
        "score": score.value,
        "parts": score.parts,
        "questions": score.questions,
        "harness": job.harness.name,
        "version": one.environment.version,
        "backend": job.settings.backend,
        "limit": job.settings.limit,
        "samples": job.route.samples,
        "rule": job.route.rule,
        "sampling": {} if job.route.likelihood else job.sampling(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(job.folder / RESULT_FILE, sealed(result))
    return result


def _run_step(job: Job, step: Step, lock: int, tick: Any) -> None:
    """Raises: ResultError: the command cannot be started, or does not end with 0."""
    with (job.folder / LOG_FILE).open("ab") as log:
        try:
            # The harness holds the lock too: if we are killed and it is not, no second one starts beside it.
            process = subprocess.Popen(
                step.argv,
                cwd=step.cwd,
                env=_variables(step),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock],
            )
        except OSError as error:
            raise ResultError(f"cannot start {step.argv[0]} ({error.strerror})") from error
        try:
            while True:
                try:
                    code = process.wait(1.0)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            end_group(process, _SECONDS_TO_END)
            raise
    if code != 0:
        raise ResultError(f"{job.harness.name} ended with code {code}: {_last_lines(job)} ({job.folder / LOG_FILE})")


def _variables(step: Step) -> dict[str, str]:
    if step.programs is None:
        return dict(os.environ)
    return {**os.environ, "PATH": f"{step.programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def _under_way(job: Job, started: float) -> str:
    elapsed = timedelta(seconds=int(time.monotonic() - started))
    return f"{job.benchmark.name} {elapsed} {_last_lines(job, 1)[-100:]}"


def _last_lines(job: Job, count: int = _LOG_LINES) -> str:
    """What the harness said last; a progress bar draws many lines over one another."""
    with (job.folder / LOG_FILE).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        text = file.read().decode("utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(line[:_LINE_LENGTH] for line in lines[-count:])
