"""Every command that writes, killed at random moments and run again: does it end as if nothing had happened?

    python benchmarks/kills.py                         # 210 kills
    python benchmarks/kills.py --kills 5 --works train study

A trial begins in an empty folder. The command is ended by SIGKILL at a moment drawn uniformly from the time that the
undisturbed one takes, one to three times in a row; half of the kills end the process alone, as `kill -9` does, and
half all that it started, as a machine that goes down does. Then the command runs to its end, with what the documents
say to add, and every file that it leaves is compared with that of the undisturbed run, byte by byte: data,
predictions, scores, weights, optimizer and random states, metrics, rollouts, figures. `NOT_COMPARED` and `TIMES` name
what is not, with the reason. Commands are forked from a server that has imported what they need, since a kill during
imports shows nothing; the table says how many kills came before the command's first file, and how many after its
last.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from chat_server import serving
from machine import describe

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "dopd_vl.cli",
        "dopd_vl.training.run",
        "dopd_vl.evaluation.run",
        "dopd_vl.studies.run",
        "privileged.prepare.prepare",
    ]
)
NOT_COMPARED = {
    r"\.replies/.*": "replies are kept in the order in which a server gave them",
    r"/log\.txt": "what a job printed, with its rates",
    r"/training_args\.bin": "says whether the run was taken up, which decides whether it begins with an evaluation",
}
"""A pattern of a file's path -> why its bytes may differ."""
TIMES = {
    r"/trainer_state\.json": rb'"step_time": [0-9.e-]+',
    r"/complete\.json": rb'"(trainer_state\.json|training_args\.bin|checksum)": "[0-9a-f]+"',
}
"""A pattern of a file's path -> what in it is a time, or the digest of what holds one."""


@dataclass
class Work:
    """A command, what prepares the ground for each trial, and what goes on with it.

    Args:
        words: The command; what it writes lies under the folder `out`.
        again: What the documents say to add when the command is run once more.
        before: Commands that come first in every trial, undisturbed.
    """

    name: str
    words: list[str]
    again: list[str] = field(default_factory=list)
    before: list[list[str]] = field(default_factory=list)


def works(folder: Path, url: str) -> list[Work]:
    """The six of them, small enough that a kill and an end take seconds."""
    out, data = folder / "out", folder / "data"
    records = write_records(folder / "records.jsonl", 2000)
    prepare = {
        "source": {"kind": "jsonl", "options": {"path": str(records)}, "default_task": "exact"},
        "output": str(out / "set"),
        "workers": 0,  # two of them would import for longer than they work
        "max_rejected_share": 0.5,
    }
    annotate = {"url": url, "model": "m", "key_env": None, "concurrency": 8}
    train = yaml.safe_load(Path("configs/llm/nano.yaml").read_text())
    train["data"] = {"train": str(data), "eval": str(data), "eval_size": 16}
    train["training"] |= {"max_steps": 12, "eval_steps": 4, "save_steps": 3, "per_device_train_batch_size": 16}
    train["objective"] = {"name": "sdft", "settings": {"average_rate": 0.2}}
    train["model"] |= {"teacher": None}
    evaluate = {"model": "nano:text-student", "data": str(data), "sampling": {"temperature": 1.0, "samples": 4}}
    study = {
        "name": "kills",
        "train_config": "configs/llm/nano.yaml",
        "output_dir": str(out / "studies"),
        "data": {
            split: {"kind": "nano", "options": {"world": "text", "split": name, "size": 48, "seed": 0}}
            for split, name in (("train", "train"), ("held-out", "heldout"))
        },
        "settings": {
            "data.train": "study:train",
            "data.eval": "study:held-out",
            "data.eval_size": 16,
            "training.max_steps": 4,
            "training.save_steps": 2,
            "training.per_device_train_batch_size": 8,
        },
        "score": {"held-out": "study:held-out"},
        "grid": {"objective.name": ["opd", "dopd-anchored"]},
        "seeds": [0],
    }

    def command(name: str, settings: dict[str, Any], *options: str, of: str | None = None) -> list[str]:
        file = folder / f"{of or name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        return [name, "--config", str(file), *options]

    parts = {**prepare, "output": str(out / "set")}
    return [
        Work("prepare", command("prepare", prepare)),
        Work("annotate", command("prepare", {**prepare, "annotate": annotate}, of="annotate")),
        Work(
            "merge",
            command("prepare", parts, "--merge", "true", of="merge"),
            before=[command("prepare", parts, "--part", f"{part}/3", of="merge") for part in (1, 2, 3)],
        ),
        Work("train", command("train", train, "--output_dir", str(out / "run")), again=["--resume", "true"]),
        Work("evaluate", command("evaluate", evaluate, "--output_dir", str(out / "scores"))),
        Work("study", command("study", study)),
    ]


def write_records(path: Path, count: int) -> Path:
    """Questions with hints; some without an answer, and some twice."""
    generator = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            first, second = generator.randrange(100), generator.randrange(100)
            row = {
                "id": f"r{number}",
                "prompt": f"Item {number if number % 10 else 0}: what is {first} and {second} taken together?",
                "answer": None if number % 17 == 3 else "a heron",
                "privileged": {"hints": ["Look at the terms.", "Combine them."]},
            }
            file.write(json.dumps(row) + "\n")
    return path


class Command:
    """One command under way in a session of its own, so that it can be killed with all that it started."""

    def __init__(self, words: list[str], said: Path):
        self.said = said
        self.process = CONTEXT.Process(target=_run, args=(words, said))
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def killed_after(self, seconds: float, everything: bool) -> bool:
        """Kill it at that time; whether it was still at work then."""
        self.process.join(seconds)
        if self.process.exitcode is not None:
            return False
        (os.killpg if everything else os.kill)(self.pid, signal.SIGKILL)
        self.process.join()
        return True

    def ended(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def _run(words: list[str], said: Path) -> None:
    os.setsid()
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    from dopd_vl.cli import main

    torch.set_num_threads(1)
    sys.argv = ["dopd-vl", *words]
    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def files(folder: Path) -> dict[str, bytes]:
    """Every file that counts, by its path."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: without_times(name, path.read_bytes()) for name, path in found.items()}


def without_times(name: str, data: bytes) -> bytes:
    if any(re.fullmatch(f".*{pattern}", name) for pattern in NOT_COMPARED):
        return b""
    for pattern, time_ in TIMES.items():
        if re.fullmatch(f".*{pattern}", name):
            data = re.sub(time_, b"", data)
    return data


def different(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    names = sorted(found.keys() ^ expected.keys())
    return names + [name for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]]


@dataclass
class Count:
    """What came of one work's trials."""

    work: str
    seconds: float = 0.0
    compared: int = 0
    kills: int = 0
    trials: int = 0
    early: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)

    def row(self) -> str:
        ends = f"{self.trials - len(self.wrong)} of {self.trials}"
        cells = (self.work, f"{self.seconds:.1f}", self.kills, self.early, self.late, ends, self.compared)
        return f"| {' | '.join(map(str, cells))} |"


def torment(work: Work, kills: int, folder: Path, generator: random.Random) -> Iterator[Count]:
    """The count so far, after each trial."""
    out, said = folder / "out", folder / "said.txt"

    def begin() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for words in work.before:
            assert Command(words, said).ended() == 0, said.read_text()

    for _ in range(2):  # the first one's time is that of the server's imports too
        begin()
        ground, start = files(out), time.perf_counter()
        if Command(work.words, said).ended() != 0:
            sys.exit(f"{work.name}: fails undisturbed\n{said.read_text()}")
        count = Count(work.name, time.perf_counter() - start)
    expected = files(out)
    count.compared = sum(map(bool, expected.values()))
    while count.kills < kills:
        begin()
        words = work.words
        for _ in range(generator.choice((1, 1, 2, 3))):
            moment, everything = generator.uniform(0, count.seconds), generator.random() < 0.5
            killed = Command(words, said).killed_after(moment, everything)
            words = [*work.words, *work.again]
            if not killed:
                break
            count.kills += 1
            found = files(out)
            count.early += found == ground
            count.late += not different(found, expected)
        code = Command(words, said).ended()
        while code == 2 and "is writing here" in said.read_text():  # a worker that has not yet noticed
            time.sleep(1)
            code = Command(words, said).ended()
        count.trials += 1
        if code != 0:
            count.wrong.append(f"exit code {code}: {said.read_text()[-2000:]}")
        elif names := different(files(out), expected):
            count.wrong.append(f"{', '.join(names[:8])} differ")
        yield count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=35, help="of each work")
    parser.add_argument("--works", nargs="+", help="by default all six")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    counts = []
    with tempfile.TemporaryDirectory() as name, serving(8, 0.005) as (url, _):
        folder = Path(name)
        data = folder / "data"
        source = ["--source.kind", "nano", "--source.options", '{"world": "text", "split": "train", "size": 64}']
        assert Command(["prepare", *source, "--output", str(data)], folder / "said.txt").ended() == 0
        for work in works(folder, url):
            if settings.works and work.name not in settings.works:
                continue
            told = 0
            for count in torment(work, settings.kills, folder, random.Random(settings.seed)):
                for wrong in count.wrong[told:]:
                    print(f"\n  {wrong}")
                told = len(count.wrong)
                print(f"\r{count.work}: {count.kills} kills, {told} wrong ends", end="", flush=True)
            print(f", {count.seconds:.1f} s undisturbed")
            counts.append(count)
    print(f"\n{describe('cpu', 1, 'float32')}; seed {settings.seed}\n")
    print("| command | undisturbed, s | kills | before its first file | after its last | ends equal | files compared |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(count.row() for count in counts))
    print(f"\n{sum(count.kills for count in counts)} kills, {sum(len(count.wrong) for count in counts)} wrong ends")


if __name__ == "__main__":
    main()
