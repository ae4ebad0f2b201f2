"""Make the data sets of the pretrained world from packages, by one seed."""

import importlib
import json
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from benchmarks.smollm2.records import (
    Record,
    arithmetic_question,
    beginning,
    distinct,
    divide,
    math_question,
    pattern,
    sequence_question,
)
from dopd_vl.common.files import make_folder, write_jsonl
from dopd_vl.common.quiet import quiet_libraries
from dopd_vl.common.terminal import Terminal, tell
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare

RECORDS = Path("runs/real/smollm2")
PREPARED = Path("runs/data/smollm2")
BIGBENCH = "bigbench==1.0.0"
REASONING_GYM = "reasoning-gym==0.1.25"
SIZES = {"held-out": 150, "tuning": 75, "train": 650, "sft": 650}
"""Records of each source in each split. The models are made from `sft`, and distilled on `train`."""
DRAWN = 10_000  # sequences, of which a sixth is kept
HELD_OUT_MATH = 60  # scored of its 150, since every run's student is scored on them and few are solved
ARITHMETIC = 60


def make_data(seed: int = 0, console: Console | None = None) -> dict[str, int]:
    """Write the records and prepare the data sets; returns the records of each.

    `train` holds both sources, `held-out-math`, `held-out-sequence` and `tuning`, of sequences, one each, and
    `arithmetic` is the third, which nothing is trained on. `sft` stays a file, with its reference responses.
    """
    console = console or Terminal()
    quiet_libraries()
    sources = {
        "math": divide(distinct(map(math_question, bigbench_rows())), SIZES, seed, alike=pattern),
        "sequence": divide(distinct(map(sequence_question, sequences(seed))), SIZES, seed, alike=beginning),
    }
    sets = {f"held-out-{name}": splits["held-out"] for name, splits in sources.items()}
    sets |= divide(arithmetic(), {"arithmetic": ARITHMETIC}, seed, alike=by_id)
    sets["held-out-math"] = sets["held-out-math"][:HELD_OUT_MATH]
    sets["tuning"] = sources["sequence"]["tuning"]
    for split in ("train", "sft"):
        sets[split] = [record for pair in zip(*(s[split] for s in sources.values()), strict=True) for record in pair]
    make_folder(RECORDS)
    for name, records in sets.items():
        file = RECORDS / f"{name}.jsonl"
        write_jsonl(file, records)
        if name != "sft":
            source = SourceConfig(kind="jsonl", name=f"smollm2-{name}", options={"path": str(file)})
            prepare(PrepareConfig(source, str(PREPARED / name), overwrite=True, sample=0), console=console)
    tell(console, "\n".join(f"{name}: {len(records)} records" for name, records in sets.items()))
    return {name: len(records) for name, records in sets.items()}


def by_id(record: Record) -> str:
    return str(record["id"])


def bigbench_rows() -> list[Record]:
    return list(example_script("bigbench").records())


def arithmetic() -> list[Record]:
    packages = example_script("packages")
    files = packages.members(packages.from_pypi(BIGBENCH), "bigbench/benchmark_tasks/arithmetic/1_digit_")
    tasks = [json.loads(data)["examples"] for name, data in sorted(files.items()) if name.endswith("/task.json")]
    return [arithmetic_question(number, example) for number, example in enumerate(chain.from_iterable(tasks))]


def sequences(seed: int) -> list[dict[str, Any]]:
    module = reasoning_gym("cognition.number_sequences")
    settings = module.NumberSequenceConfig(min_terms=4, max_terms=6, max_complexity=1, seed=seed * DRAWN, size=DRAWN)
    return list(module.NumberSequenceDataset(settings))


def reasoning_gym(module: str) -> ModuleType:
    """A module of reasoning-gym, from its wheel.

    The package is not installed, as it pins all that it depends on, and its own `__init__` files are not run, as they
    import all generators and with them those dependencies.
    """
    wheel = example_script("packages").from_pypi(REASONING_GYM)
    for name in ("reasoning_gym", f"reasoning_gym.{module.partition('.')[0]}"):
        package = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(wheel / name.replace(".", "/"))]
    return importlib.import_module(f"reasoning_gym.{module}")


def example_script(module: str) -> ModuleType:
    """A script of examples/real_data, which import each other by their plain names."""
    folder = str(Path(__file__).parents[2] / "examples" / "real_data")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(module)
