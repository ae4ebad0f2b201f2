"""What a run costs as it grows: the alarms a step, going on, and the report, at three sizes.

    python benchmarks/scaling.py

Each line is measured in a process of its own, which says its time and by how much its memory grew at the most. The run
folders are made up: rows of metrics.jsonl like those of a run, and rollouts of 2,000 tokens each.
"""

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dopd_vl.common.files import append_jsonl
from dopd_vl.common.run_layout import METRICS_FILE, ROLLOUTS_FILE
from dopd_vl.health.alarms import alarms_at
from dopd_vl.health.rows import History, RunFacts
from dopd_vl.objectives import Dopd
from dopd_vl.reporting.inspector import read_rollouts
from dopd_vl.run_folder.checkpoints import mark_whole
from dopd_vl.run_folder.kept_files import KeptFiles, check_rollouts, restore
from dopd_vl.train_config import HealthSettings

STEPS = (1_000, 4_000, 16_000)
ROLLOUT_STEPS = (100, 400, 1_600)
TOKENS = 2_000
LAST = 100


def metrics(steps: int) -> Iterator[dict[str, Any]]:
    """A healthy run: accuracy and gap that scatter, so that every rule looks at all of it and none speaks."""
    chance = random.Random(0)
    for step in range(1, steps + 1):
        shares = {f"token_share/{name}": 0.25 for name in ("LH", "LL", "HT", "HS")}
        yield {
            "step": step,
            "loss": chance.uniform(0.4, 0.6),
            "grad_norm": chance.uniform(0.8, 1.2),
            "entropy": chance.uniform(0.9, 1.1),
            "entropy/teacher/privileged": chance.uniform(0.4, 0.5),
            "gap/mean": chance.uniform(0.9, 1.1),
            "rollout_accuracy": chance.uniform(0.4, 0.6),
            "completions/mean_length": chance.uniform(900, 1100),
            "completions/clipped_ratio": chance.uniform(0.0, 0.1),
            **shares,
        }


def rollouts(steps: int) -> Iterator[dict[str, Any]]:
    """One of 2,000 tokens a step, with two policies' numbers and alternatives."""
    chance = random.Random(0)
    policies = ("teacher/privileged", "student/privileged")
    for step in range(1, steps + 1):
        numbers = [round(chance.uniform(-5, 0), 4) for _ in range(TOKENS)]
        yield {
            "step": step,
            "id": f"example-{step}",
            "response": " word" * TOKENS,
            "correct": True,
            "answer": "4",
            "tokens": [" word"] * TOKENS,
            **{f"logp/{policy}": numbers for policy in policies},
            "gap": numbers,
            "regime": [0] * TOKENS,
            "weight": [1.0] * TOKENS,
            "alternatives": {policy: [[[" word", 0.9], [" other", 0.05]]] * TOKENS for policy in policies},
        }


def alarms(folder: Path, steps: int) -> str:
    """Milliseconds that the alarms take at one step, mean of the run's last ones."""
    facts = RunFacts(Dopd(), rollouts_per_row=64, logging_steps=1, learning_rate=1e-6, max_completion_length=2_000)
    history, spent = History(), 0.0
    for number, row in enumerate(metrics(steps), 1):
        began = time.perf_counter()
        history.add(row)
        alarms_at(history, facts, HealthSettings())
        spent += time.perf_counter() - began if number > steps - LAST else 0.0
    return f"{1000 * spent / LAST:.2f} ms a step"


def going_on(folder: Path, steps: int) -> str:
    """The run folder's files as they were at the checkpoint: what a run that goes on does before anything else."""
    checkpoint = folder / f"checkpoint-{steps}"
    began = time.perf_counter()
    check_rollouts(folder, checkpoint)
    restore(folder, checkpoint)
    return f"{time.perf_counter() - began:.2f} s"


def report(folder: Path, steps: int) -> str:
    """The rollouts of 20 steps, as `dopd-vl report` reads them."""
    began = time.perf_counter()
    read_rollouts(folder, 20)
    return f"{time.perf_counter() - began:.2f} s"


def make_run(folder: Path, steps: int) -> None:
    """A run folder with one checkpoint of its last step."""
    for name, rows in ((METRICS_FILE, metrics(steps)), (ROLLOUTS_FILE, rollouts(steps))):
        for row in rows:
            append_jsonl(folder / name, [row])
    checkpoint = folder / f"checkpoint-{steps}"
    checkpoint.mkdir()
    KeptFiles(folder).copy_into(checkpoint)
    mark_whole(checkpoint, {"step": steps})


def _measured(work: Callable[[Path, int], str], folder: Path, steps: int, answer: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = work(folder, steps)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answer.send((told, f"{grown:.0f} MiB"))


def measure(work: Callable[[Path, int], str], folder: Path, steps: int) -> tuple[str, str]:
    """What the work says and by how much it raised the peak of memory, in a fresh process."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_measured, args=(work, folder, steps, there))
    child.start()
    child.join()
    return here.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrink", type=int, default=1, help="divide every size by this, to try the script")
    shrink = parser.parse_args().shrink
    print("| | size | time | memory |\n|---|---:|---:|---:|")
    for steps in STEPS:
        told = measure(alarms, Path(), max(LAST, steps // shrink))
        print(f"| alarms | {steps // shrink:,} rows | {' | '.join(told)} |", flush=True)
    for steps in ROLLOUT_STEPS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_run(folder, max(1, steps // shrink))
            size = (folder / ROLLOUTS_FILE).stat().st_size / 2**20
            for title, work in (("report", report), ("going on", going_on)):
                told = measure(work, folder, max(1, steps // shrink))
                print(f"| {title} | rollouts.jsonl of {size:,.0f} MiB | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
