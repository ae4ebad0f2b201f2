"""The runs of a study, in a process of their own: train (stage by stage) and score what comes of it.

    python -m dopd_vl.studies.worker JOB.json      one job
    python -m dopd_vl.studies.worker -             jobs by standard input, a file a line: libraries are loaded once

A job file holds `train` (configuration files, in order), `models` (name -> model), `score` (name -> data set and size),
`variants`, `output`, the file for the scores, `log`, and `status`, the file that says how the job ended. Stopped at any
point, the same job goes on from there.
"""

import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import write_json
from dopd_vl.common.terminal import Terminal


def main(argument: str) -> int:
    if argument != "-":
        return run_job(argument)
    for line in sys.stdin:
        run_job(line.strip())
    return 0


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
        traceback.print_exc()
        code, reason = 1, f"{type(error).__name__}: {' '.join(str(error).split())}"
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_first_process():
        write_json(Path(job["status"]), {"code": code, "reason": reason})
    return code


def _train_and_score(job: dict[str, Any]) -> None:

    from dopd_vl.common.configuration import read_config
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.common.run_layout import FACTS_FILE, STUDENT_FOLDER
    from dopd_vl.train_config import TrainConfig
    from dopd_vl.training.run import run_training

    quiet_libraries()
    console = Terminal(width=160)
    for file in job["train"]:
        config = read_config(TrainConfig, ["--config", file], "dopd-vl study")
        if not (Path(config.output_dir) / STUDENT_FOLDER / FACTS_FILE).exists():
            run_training(config, console=console)
    if _is_first_process():
        _score(job, console)


def _score(job: dict[str, Any], console: Any) -> None:
    """Scores of each model on each data set in each variant, and every prediction's verdict, as one file."""
    from dopd_vl.evaluation.run import evaluate_model
    from dopd_vl.training.run import load_examples

    scores: dict[str, Any] = {}
    for model_name, model in job["models"].items():
        for data_name, (folder, size) in job["score"].items():
            examples = load_examples(folder, size)
            for variant in job["variants"]:
                title = f"score {model_name} {data_name} {variant}"
                accuracy, predictions, _ = evaluate_model(
                    model, examples, variant, job["max_new_tokens"], job["batch_size"], title=title, console=console
                )
                scores.setdefault(model_name, {}).setdefault(data_name, {})[variant] = {
                    **asdict(accuracy),
                    "correct": {prediction.id: prediction.correct for prediction in predictions},
                }
    write_json(Path(job["output"]), scores)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
