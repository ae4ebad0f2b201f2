"""AutoLogi by its own scorer, which runs each puzzle's verifiers over the answer; checked at d67fda13.

The scorer takes responses and asks nobody, so they are asked for here (`autologi_responses`).
"""

import json
import sys

from dopd_vl.common.files import read_jsonl
from dopd_vl.harnesses.job import Adapter, Job, ResultError, Score, Step, combined


def _steps(job: Job) -> list[Step]:
    steps = []
    for part in job.route.scores:
        responses = job.folder / f"responses_{part.task}.jsonl"
        ask = [sys.executable, "-m", "dopd_vl.harnesses.autologi_responses"]
        ask += ["--questions", str(job.source / "testing-data" / f"AutoLogi_{part.task}.jsonl")]
        ask += ["--output", str(responses), "--api_url", job.settings.api_url, "--model", job.served_name]
        ask += ["--sampling", json.dumps(job.sampling()), "--concurrency", str(job.settings.batch_size)]
        if job.settings.limit is not None:
            ask += ["--limit", str(job.settings.limit)]
        score = [job.python, str(job.source / "evaluation" / "eval.py"), "--input_data", str(responses)]
        score += ["--output_dir", str(job.folder), "--model_name", part.task]
        # The scorer writes a file where it stands, and starts `python`.
        steps += [Step(ask), Step(score, job.folder, job.environment / "bin")]
    return steps


def _read(job: Job) -> Score:
    parts, count = {}, 0
    for part in job.route.scores:
        file = job.folder / f"{part.task}_eval_results.jsonl"
        rows = read_jsonl(file)
        if not rows:
            raise ResultError(f"autologi left no result: {file}")
        asked = job.folder / f"responses_{part.task}.jsonl"
        if asked.is_file() and len(read_jsonl(asked)) != len(rows):
            raise ResultError(f"{file}: {len(rows)} verdicts on {len(read_jsonl(asked))} responses")
        parts[part.task] = sum(row[part.metric] for row in rows) / len(rows)
        count += len(rows)
    return combined(job, parts, count)


AUTOLOGI = Adapter(_steps, _read, ("server",))
