"""The shipped commands on nano, on whatever device there is: prepare, train, a kill, the rest of the run, a score."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.table import Rows
from dopd_vl.common.files import read_jsonl
from dopd_vl.common.run_layout import COMPLETE_FILE, METRICS_FILE, STUDENT_FOLDER, checkpoint_folder

STEPS, SAVED = 4, 2


def commands(sizes: Sizes, rows: Rows) -> None:
    """Each command's seconds, and whether a killed run went on to what an unbroken one would have logged."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, run = folder / "data", folder / "run"
        options = "{world: vision, split: train, size: 32, seed: 0}"
        words = ["prepare", "--config", "prepare/nano-vision", "--source.options", options, "--output", str(data)]
        rows.add("prepare", finished(words, folder), "s")
        train = ["train", "--config", "vlm/nano", "--output_dir", str(run), "--data.train", str(data)]
        train += ["--data.eval", str(data), "--data.eval_size", "8", "--training.per_device_train_batch_size", "8"]
        train += ["--training.num_generations", "4", "--training.max_steps", str(STEPS)]
        train += ["--training.save_steps", str(SAVED), "--training.eval_steps", str(SAVED)]
        whole = checkpoint_folder(run, SAVED) / COMPLETE_FILE
        rows.add(f"train, killed once step {SAVED} was saved", killed_after(train, whole, folder), "s")
        rows.add("train --resume true", finished([*train, "--resume", "true"], folder), "s")
        steps = [row["step"] for row in read_jsonl(run / METRICS_FILE) if "loss" in row]
        wrong = len(set(range(1, STEPS + 1)) ^ set(steps)) + len(steps) - len(set(steps))
        rows.add("steps lost or logged twice", float(wrong), at_most=0)
        words = ["evaluate", "--model", str(run / STUDENT_FOLDER), "--data", str(data)]
        words += ["--output_dir", str(folder / "score"), "--max_new_tokens", "8"]
        rows.add("evaluate", finished(words, folder), "s")


def finished(words: Sequence[str], folder: Path) -> float:
    """Seconds of a command that ends well.

    Raises:
        RuntimeError: it does not; the message ends with what it said.
    """
    start = time.perf_counter()
    process = started(words, folder)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"dopd-vl {words[0]} ended with {process.exitcode}: {last_words(folder)}")
    return time.perf_counter() - start


def killed_after(words: Sequence[str], file: Path, folder: Path) -> float:
    """Seconds until a file was there, and the command killed.

    Raises:
        RuntimeError: the command ended before.
    """
    start = time.perf_counter()
    process = started(words, folder)
    while not file.exists():
        if not process.is_alive():
            raise RuntimeError(f"dopd-vl {words[0]} ended with {process.exitcode}: {last_words(folder)}")
        time.sleep(0.02)
    process.kill()
    process.join()
    return time.perf_counter() - start


def started(words: Sequence[str], folder: Path) -> Any:
    process = multiprocessing.Process(target=_command, args=(list(words), str(folder / "said")))
    process.start()
    return process


def last_words(folder: Path) -> str:
    return " ".join((folder / "said").read_text(encoding="utf-8", errors="replace").split())[-300:]


def _command(words: list[str], file: str) -> None:
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(opened, number)
    from dopd_vl.cli import main

    raise SystemExit(main(words))
