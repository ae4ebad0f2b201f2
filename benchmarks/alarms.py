"""How early the alarms of a run tell a collapse, and how often they cry wolf, over finished run folders.

    python benchmarks/alarms.py 'runs/studies/*/*/runs/*/seed-*'
    python benchmarks/alarms.py 'runs/studies/*/*/runs/*/seed-*' --without-verifier    # hides the rollout accuracy
    python benchmarks/alarms.py ... --output alarms.json

What counts as collapsed, and where a collapse begins, stands in dopd_vl/training/alarm_evaluation.py. Exit code 1 where
a collapsed run was not told of within 20 steps, or a healthy run had an alarm.
"""

import argparse
import glob
import statistics
import sys
from pathlib import Path
from typing import Any

from dopd_vl.files import write_json
from dopd_vl.training.alarm_evaluation import AlarmScores, JudgedRun, evaluate_alarms

WITHIN = 20
"""steps after the onset"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="run folders, or glob patterns of them")
    parser.add_argument("--without-verifier", action="store_true", help="hide the rollout accuracy from the alarms")
    parser.add_argument("--output", type=Path, help="every run with its verdict and alarms, as JSON")
    options = parser.parse_args()
    found = {Path(name) for pattern in options.folders for name in glob.glob(pattern, recursive=True)}
    folders = sorted(folder for folder in found if (folder / "config.yaml").is_file())
    scores = evaluate_alarms(folders, without_verifier=options.without_verifier)
    if not scores.runs:
        print("no finished run with evaluations among these folders", file=sys.stderr)
        return 2
    print_scores(scores, len(folders))
    if options.output:
        write_json(options.output, [as_row(run) for run in scores.runs])
    late = len(scores.of("collapsed")) - scores.caught_within(WITHIN, "collapsed")
    return int(late > 0 or scores.caught("healthy") > 0)


def as_row(run: JudgedRun) -> dict[str, Any]:
    alarms = [alarm._asdict() for alarm in run.alarms]
    return {**vars(run), "folder": str(run.folder), "alarms": alarms, "first": run.first, "delay": run.delay}


def print_scores(scores: AlarmScores, folders: int) -> None:
    print(f"{len(scores.runs)} finished runs of {folders} folders, {len(scores.unreadable)} of another version")
    for verdict in ("collapsed", "decayed", "one-task", "diverged", "unclear"):
        runs = scores.of(verdict)
        if not runs:
            continue
        delays = sorted(run.delay for run in runs if run.delay is not None)
        from_peak = sorted(run.first - run.peak for run in runs if run.first is not None and run.peak is not None)
        print(
            f"{verdict}: {scores.caught(verdict)} of {len(runs)} told, "
            f"{scores.caught_within(WITHIN, verdict)} within {WITHIN} steps of the onset"
            + (f"; delay median {statistics.median(delays):g}, longest {delays[-1]}" if delays else "")
            + (f"; from the peak median {statistics.median(from_peak):g}" if from_peak else "")
        )
    print(f"healthy: {scores.caught('healthy')} of {len(scores.of('healthy'))} with a false alarm")
    for run in scores.runs:
        if run.verdict == "healthy" and not run.alarms:
            continue
        evaluations = " ".join(f"{value:.2f}" for value in run.evaluations)
        print(f"\n{run.verdict}  {run.folder}\n  held-out {evaluations}; peak {run.peak}, onset {run.onset}")
        for alarm in run.alarms:
            print(f"  step {alarm.step} {alarm.kind}: {alarm.message}")


if __name__ == "__main__":
    sys.exit(main())
