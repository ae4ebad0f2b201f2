"""The runs of a study, in a process of their own: train (stage by stage) and score what comes of it.

    python -m dopd_vl.studies.worker JOB.json      one job
    python -m dopd_vl.studies.worker -             jobs by standard input, a file a line: libraries are loaded once

A job file holds `train` (configuration files, in order), `models` (name -> model), `score` (name -> data set and size),
`variants`, `dtype`, `output`, the file for the scores, `keep_checkpoints`, `log`, and `status`, the file that says how
the job ended. Stopped at any point, the same job goes on from there. The study holds the other end of standard input:
once that is closed, the study is no more, however it ended, and its worker ends as well.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import sealed
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import told_of_disk, write_json
from dopd_vl.common.processes import is_first_process
from dopd_vl.common.terminal import Terminal

IN_STUDY = "DOPD_VL_STUDY_WORKER"
"""Environment variable: a study started this process, in a session of its own."""


def main(argument: str) -> int:
    jobs, busy = queue.SimpleQueue[str | None](), threading.Event()
    if argument != "-":
        busy.set()
    if argument == "-" or IN_STUDY in os.environ:
        threading.Thread(target=_listen, args=(jobs, busy), daemon=True).start()
    if argument != "-":
        return run_job(argument)
    while (job_file := jobs.get()) is not None:
        run_job(job_file)
        if jobs.empty():
            busy.clear()
    return 0


def _listen(jobs: "queue.SimpleQueue[str | None]", busy: threading.Event) -> None:
    """Hand on what the study sends, and end everything when it is gone in the middle of a job."""
    told = b""
    while block := os.read(0, 4096):  # not sys.stdin: a thread that waits in it holds up the interpreter's end
        *lines, told = (told + block).split(b"\n")
        for line in lines:
            busy.set()
            jobs.put(line.decode())
    if busy.is_set() and IN_STUDY in os.environ:
        os.killpg(0, signal.SIGKILL)  # its session, with whatever the job started; it goes on later from a checkpoint
    jobs.put(None)


def run_job(job_file: str) -> int:
    """Do one job; its exit code, which its status file holds too."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    code, reason = 0, ""
    try:
        _train_and_score(job)
    except UserError as error:
        code, reason = 2, " ".join(str(error).split())
    except Exception as error:  # whatever a run died of, the others go on; the traceback is in its log
        disk = told_of_disk(error)
        if disk is None:
            traceback.print_exc()
        code, reason = (1, f"{type(error).__name__}: {' '.join(str(error).split())}") if disk is None else (2, disk)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first_process():
        write_json(Path(job["status"]), {"code": code, "reason": reason})
    return code


def _train_and_score(job: dict[str, Any]) -> None:

    from dopd_vl.common.configuration import read_config
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.run_folder.checkpoints import remove_all
    from dopd_vl.studies.finished import unfinished_stage
    from dopd_vl.train_config import TrainConfig
    from dopd_vl.training.run import run_training

    quiet_libraries()
    console = Terminal(width=160)
    for file in job["train"]:
        config = read_config(TrainConfig, ["--config", file], "dopd-vl study")
        if unfinished_stage(config) is not None:
            run_training(config, console=console)
    if is_first_process():
        _score(job, console)
        if not job.get("keep_checkpoints", True):
            for file in job["train"]:
                remove_all(Path(read_config(TrainConfig, ["--config", file], "dopd-vl study").output_dir))


def _score(job: dict[str, Any], console: Any) -> None:
    """Scores of each model on each data set in each variant, each prediction's verdict, and what they are made from."""
    from dopd_vl.evaluation.run import evaluate_model
    from dopd_vl.studies.config import TUNING
    from dopd_vl.studies.finished import Contents
    from dopd_vl.training.run import load_examples

    scores: dict[str, Any] = {}
    made_from = Contents().of_scoring(job)
    for model_name, model in job["models"].items():
        for data_name, (folder, size) in job["score"].items():
            examples = load_examples(folder, size)
            # Settings are chosen by what a deployed student sees.
            for variant in job["variants"][:1] if data_name == TUNING else job["variants"]:
                title = f"score {model_name} {data_name} {variant}"
                accuracy, predictions, _ = evaluate_model(
                    model,
                    examples,
                    variant,
                    job["max_new_tokens"],
                    job["batch_size"],
                    job["dtype"],
                    title=title,
                    console=console,
                )
                scores.setdefault(model_name, {}).setdefault(data_name, {})[variant] = {
                    **asdict(accuracy),
                    "correct": {prediction.id: prediction.correct for prediction in predictions},
                }
    write_json(Path(job["output"]), sealed({"made_from": made_from, "scores": scores}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
