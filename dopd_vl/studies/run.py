"""Run a study: prepare its data, run what is not done yet, as many at a time as asked for, and gather the results."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.errors import ConfigurationError, PrepareError
from dopd_vl.common.files import exclusive, make_folder, write_atomically, write_json
from dopd_vl.common.processes import end_group
from dopd_vl.common.progress import live_bar
from dopd_vl.common.run_layout import METRICS_FILE, STUDENT_FOLDER
from dopd_vl.common.terminal import tell
from dopd_vl.studies.config import (
    DATA_PREFIX,
    TUNING,
    Run,
    StudyConfig,
    check,
    data_folder,
    resolve,
    study_folder,
)
from dopd_vl.studies.finished import Contents, changes, load_scores, outdated_scores, unfinished_stage
from dopd_vl.studies.worker import IN_STUDY
from dopd_vl.train_config import TrainConfig

SCORES_FILE = "scores.json"
STOP_SECONDS = 20.0
POLL_SECONDS = 0.5
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, eq=False)
class Job:
    """One process: a run with its scores, or the scores of the models that runs begin from."""

    title: str
    folder: Path
    steps: int
    content: dict[str, Any]
    stages: tuple[TrainConfig, ...] = ()

    @property
    def output(self) -> Path:
        return self.folder / SCORES_FILE

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def status(self) -> Path:
        """Written when the job's process is through with it."""
        return self.folder / "status.json"

    def done_steps(self) -> int:
        """Optimizer steps so far, over all stages."""
        return sum(_last_step(Path(stage.output_dir) / METRICS_FILE) for stage in self.stages)


@dataclass(frozen=True)
class Failure:
    """A job that did not come to its end."""

    title: str
    reason: str
    log: Path


@dataclass(frozen=True)
class Outcome:
    """What a study came to."""

    runs: list[Run]
    failures: list[Failure]
    scores: dict[Path, dict[str, Any]]
    """of each job that is done, by its folder"""
    tried: list[Run] = field(default_factory=list)
    """what the values of `StudyConfig.tune` were chosen from; `runs` holds those that were chosen, with all seeds"""


def run_study(config: StudyConfig, console: Console) -> Outcome:
    """Do what is not done yet.

    Raises:
        ConfigurationError: something is wrong with the study, or runs of it were made with other settings: nothing was
            run. Or no response to `tune_on` can be verified, so that nothing can be chosen.
    """
    every = check(config)
    folder = study_folder(config)
    make_folder(folder)
    with exclusive(folder, "study") as lock:
        prepare_data(config, every, console)
        contents = Contents()
        _refuse_other_settings(config, every, contents)
        write_atomically(folder / "study.yaml", as_yaml(config))
        tried = [run for run in every if run.seed == config.seeds[0]] if config.tune else []
        first = tried or every
        jobs = [*_reference_jobs(config, first), *(_job(config, run) for run in first)]
        failures, scores = _do(config, first, jobs, contents, console, lock)
        if not tried:
            return Outcome(every, failures, scores)
        best = best_titles(config, tried, scores)
        for name in dict.fromkeys(run.cell.name for run in tried):
            told = f"tuned, {best[name]}" if name in best else f"not tuned, {name}: not all of its values are scored"
            tell(console, told)
        chosen = [run for run in every if best.get(run.cell.name) == run.cell.title]
        more = [run for run in chosen if run not in tried]
        more_jobs = [_job(config, run) for run in more]
        more_failures, more_scores = _do(config, more, more_jobs, contents, console, lock)
        return Outcome(chosen, [*failures, *more_failures], {**scores, **more_scores}, tried)


def _do(
    config: StudyConfig, runs: list[Run], jobs: list[Job], contents: Contents, console: Console, lock: int
) -> tuple[list[Failure], dict[Path, dict[str, Any]]]:
    """Do what is not done yet of these jobs, which are for these runs; what failed, and the scores of what is done."""
    undone = {job: reason for job in jobs if (reason := _undone(job, contents)) is not None}
    if len(undone) < len(jobs):
        tell(console, f"{len(jobs) - len(undone)} of {len(jobs)} jobs are done already")
    for job, reason in undone.items():
        if job.output.exists():
            tell(console, f"{job.title}: done again, {reason}")
    if undone:
        _check_data(config, runs)
    failures = _run_all(list(undone), config, console, lock) if undone else []
    contents = Contents()  # students are other ones now
    done = [job for job in jobs if job not in undone or _undone(job, contents) is None]
    return failures, {job.folder: load_scores(job.output) for job in done}


def tuning_accuracy(config: StudyConfig, run: Run, scores: Mapping[Path, dict[str, Any]]) -> float | None:
    """A run's accuracy on `tune_on`, as a deployed student sees it; None where it is not scored yet.

    Raises:
        ConfigurationError: no response to `tune_on` has a verdict.
    """
    if run.folder not in scores:
        return None
    accuracy: float | None = scores[run.folder][run.last_stage][TUNING][config.score_variants[0]]["accuracy"]
    if accuracy is None:
        raise ConfigurationError(f"tune_on: {config.tune_on} has no task whose responses are scored")
    return accuracy


def best_titles(config: StudyConfig, tried: list[Run], scores: Mapping[Path, dict[str, Any]]) -> dict[str, str]:
    """The title of each cell, by its name, whose student scores best on `tune_on`; the first of those that do.

    A cell is left out until all of its values are scored: a choice among some would not be that among all.
    """
    by_name: dict[str, dict[str, float | None]] = {}
    for run in tried:
        by_name.setdefault(run.cell.name, {})[run.cell.title] = tuning_accuracy(config, run, scores)
    best = {}
    for name, values in by_name.items():
        scored = {title: accuracy for title, accuracy in values.items() if accuracy is not None}
        if len(scored) == len(values):
            best[name] = max(scored, key=lambda title: scored[title])
    return best


def _refuse_other_settings(config: StudyConfig, runs: list[Run], contents: Contents) -> None:
    """With `rerun`, remove runs that were made with other settings; otherwise:

    Raises:
        ConfigurationError: there are some; the message says what changed.
    """
    other = [(run, found) for run in runs if (found := list(_changes(run, contents)))]
    if config.rerun:
        for run, _ in other:
            shutil.rmtree(run.folder)
        return
    if other:
        first, found = other[0]
        more = sorted({change for _, some in other for change in some} - set(found))
        told = "; ".join([*found, *more][:4])
        raise ConfigurationError(
            f"{study_folder(config)}: {len(other)} of {len(runs)} runs were made with other settings ({first.folder}: "
            f"{told}); set them back, give the study another name, or --rerun true removes those runs and makes them "
            "anew"
        )


def _changes(run: Run, contents: Contents) -> Iterator[str]:
    for _, stage in run.stages:
        yield from changes(stage, contents)
        if unfinished_stage(stage) is not None:
            return  # what comes after begins from this one's student


def _undone(job: Job, contents: Contents) -> str | None:
    """Why a job is to be done; None where it is done."""
    for stage in job.stages:
        reason = unfinished_stage(stage)
        if reason is not None:
            return reason
    return outdated_scores(job.output, job.content, contents)


def prepare_data(config: StudyConfig, runs: list[Run], console: Console) -> None:
    """The study's own data sets, as `dopd-vl prepare` makes them, as far as these runs need them."""
    from dopd_vl.nano.source import NanoSource
    from privileged.prepare.config import PrepareConfig, SourceConfig
    from privileged.prepare.prepare import prepare

    used = _used_data(config, runs)
    for name, source in config.data.items():
        if isinstance(source, str) or str(data_folder(config, name)) not in used:
            continue
        try:
            settings = SourceConfig(**source)
        except TypeError as error:
            raise ConfigurationError(f"data.{name}: {error}") from error
        output = data_folder(config, name)
        prepared = PrepareConfig(source=settings, output=str(output), overwrite=config.rerun)
        try:
            prepare(prepared, {"nano": NanoSource}, console)
        except PrepareError as error:
            if not prepared.overwrite and output.exists():
                raise PrepareError(f"data.{name}: {error} (here: --rerun true)") from error
            raise


def _used_data(config: StudyConfig, runs: list[Run]) -> list[str]:
    """The folders of every data set that these runs are trained and scored on."""
    folders: dict[str | None, None] = {}
    for run in runs:
        folders |= dict.fromkeys(folder for _, stage in run.stages for folder in (stage.data.train, stage.data.eval))
        folders |= dict.fromkeys(folder for folder, _ in score_sets(config, run).values())
    return list(filter(None, folders))


def _check_data(config: StudyConfig, runs: list[Run]) -> None:
    """Open every data set once, before each run would stumble over one that cannot be.

    Raises:
        PrepareError: names its folder.
    """
    from privileged import load_privileged

    for folder in _used_data(config, runs):
        load_privileged(folder)


def score_sets(config: StudyConfig, run: Run) -> dict[str, tuple[str, int | None]]:
    """Name -> (folder, how many examples) of what a run's student is scored on."""
    sets: dict[str, tuple[str, int | None]]
    sets = {name: (str(resolve(config, folder)), None) for name, folder in config.score.items()}
    if not sets:
        data = run.stages[-1][1].data
        if data.eval is None:
            raise ConfigurationError("score: name a held-out data set, or give the runs a data.eval")
        sets = {"held-out": (data.eval, data.eval_size)}
    if config.tune and run.seed == config.seeds[0]:
        sets[TUNING] = (str(resolve(config, f"{DATA_PREFIX}{config.tune_on}")), None)
    return sets


def _job(config: StudyConfig, run: Run) -> Job:
    files = []
    for _, stage in run.stages:
        file = Path(stage.output_dir).with_name(f"{Path(stage.output_dir).name}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, as_yaml(stage))
        files.append(str(file))
    models = {name or "student": str(Path(stage.output_dir) / STUDENT_FOLDER) for name, stage in run.stages}
    content = {"train": files, "models": models, **_scoring(config, run), "output": str(run.folder / SCORES_FILE)}
    content["keep_checkpoints"] = config.keep_checkpoints
    stages = tuple(stage for _, stage in run.stages)
    return Job(f"{run.cell.title}, seed {run.seed}", run.folder, run.steps, content, stages)


def _scoring(config: StudyConfig, run: Run) -> dict[str, Any]:
    loop = run.stages[-1][1].training
    return {
        "score": score_sets(config, run),
        "variants": config.score_variants,
        "max_new_tokens": loop.max_completion_length,
        "batch_size": loop.per_device_eval_batch_size,
        "dtype": config.score_dtype,
    }


def reference_folder(config: StudyConfig, model: str) -> Path:
    """Where the scores of a model stand that runs begin from or learn from."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in model).strip("-.")
    return study_folder(config) / "references" / name


def _reference_jobs(config: StudyConfig, runs: list[Run]) -> Iterator[Job]:
    """Each student to begin with, and each teacher, is scored once."""
    first: dict[str, Run] = {}
    for run in runs:
        for model in run.references:
            first.setdefault(model, run)
    for model, run in first.items():
        folder = reference_folder(config, model)
        content = {"train": [], "models": {"model": model}, **_scoring(config, run)}
        yield Job(f"score {model}", folder, 0, {**content, "output": str(folder / SCORES_FILE)})


def _last_step(metrics: Path) -> int:
    """The step of the last whole row; only the file's end is read."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


class _Worker:
    """A process that does one job after another, in a session of its own: Ctrl-C reaches it through us alone."""

    def __init__(self, config: StudyConfig, device: str | None, lock: int):
        self.config, self.device, self.lock = config, device, lock
        self.process: subprocess.Popen[bytes] | None = None
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        job.status.unlink(missing_ok=True)
        job_file = job.folder / "job.json"
        write_json(job_file, {**job.content, "log": str(job.log), "status": str(job.status)})
        if self.config.launcher and job.steps:  # the launcher's processes are for one job
            self.close()
            self.process = self._spawn(shlex.split(self.config.launcher), str(job_file))
            return
        if self.process is None or self.process.poll() is not None:
            self.process = self._spawn([sys.executable], "-")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job_file}\n".encode())
        self.process.stdin.flush()

    def _spawn(self, start: list[str], argument: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            IN_STUDY: "1",
            "OMP_NUM_THREADS": str(self.config.threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.device
        return subprocess.Popen(
            [*start, "-m", "dopd_vl.studies.worker", argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            pass_fds=(self.lock,),  # while it lives, the study is not over
        )

    def ended(self) -> tuple[int, str] | None:
        """Exit code and reason of the job, or None while it runs."""
        assert self.job is not None
        assert self.process is not None
        died = self.process.poll()
        if self.job.status.exists():
            status = json.loads(self.job.status.read_text(encoding="utf-8"))
            return status["code"], status["reason"]
        return None if died is None else (died, f"its process ended with code {died}")

    def close(self) -> None:
        """Let a process that has nothing to do end."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()

    def stop(self) -> None:
        """End it now; its job goes on later from its last whole checkpoint."""
        if self.process is not None:
            end_group(self.process, STOP_SECONDS)


def _run_all(jobs: list[Job], config: StudyConfig, console: Console, lock: int) -> list[Failure]:
    devices: list[str | None] = list(config.devices) or [None] * config.workers
    free = [_Worker(config, device, lock) for device in devices]
    waiting = list(reversed(jobs))
    running: dict[_Worker, TaskID] = {}
    failures = []
    finished_steps = 0
    with live_bar(console) as progress:
        whole = progress.add_task("study", total=sum(job.steps for job in jobs) or 1, facts="steps")
        try:
            while waiting or running:
                while waiting and free:
                    worker, job = free.pop(0), waiting.pop()
                    worker.begin(job)
                    running[worker] = progress.add_task(job.title, total=job.steps or 1, facts="steps")
                time.sleep(POLL_SECONDS)
                under_way = 0
                for worker, task in list(running.items()):
                    assert worker.job is not None
                    job, ended = worker.job, worker.ended()
                    progress.update(task, completed=job.done_steps())
                    if ended is None:
                        under_way += job.done_steps()
                        continue
                    finished_steps += job.steps
                    free.append(worker)
                    progress.remove_task(running.pop(worker))
                    code, reason = ended
                    if code:
                        failures.append(Failure(job.title, reason, job.log))
                    told = f"failed: {reason} ({job.log})" if code else "done"
                    tell(console, f"{job.title}: {told}")
                progress.update(whole, completed=finished_steps + under_way)
        finally:
            for worker in running:
                worker.stop()
            for worker in free:
                worker.close()
    return failures
