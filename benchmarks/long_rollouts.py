"""Peak memory of whole training steps against the length of the rollouts, on the CPU, in fp32.

    python benchmarks/long_rollouts.py                        # 512 to 4,096 response tokens
    python benchmarks/long_rollouts.py --lengths 512          # one of them; rows that were measured before are kept

The pair of `step.py`'s world `qwen3`: untrained models of the shapes of Qwen3-1.7B and Qwen3-0.6B, cut to two layers,
with the whole vocabulary of 151,936. All weights learn, two optimizer steps of DOPD (the second has the optimizer's
moments), two rollouts of one prompt; an untrained student hardly ever ends a response, so each is as long as it may be.
Each length is a run of `memory.py` in a process of its own, and is compared with the plan of the same run.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import memory
import numpy as np
from machine import VERSIONS, describe
from step import models_of

LENGTHS = (512, 1024, 2048, 4096)
WAY = "all weights"
GIB = 2**30


def measure(models: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run: what its process held at most, in bytes, what the plan says of it, and how long it took."""
    numbers = {"batch": args.group, "group": args.group, "length": length, "threads": args.threads}
    started = time.perf_counter()
    seen = memory.child(models, "--ways", WAY, *[f"--{name}={number}" for name, number in numbers.items()])
    seconds = time.perf_counter() - started
    if seen["response_tokens"] != length:
        raise SystemExit(f"every response ended before {length} tokens")
    _, planned = memory.predict(Path(models), WAY, argparse.Namespace(**numbers), seen)
    return {**seen, "predicted": planned.peak, "moment": planned.peak_moment, "seconds": seconds}


def line_through(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Least squares of the process's peak on the response's length: bytes a token, bytes at none, worst miss."""
    lengths, peaks = (np.array([row[name] for row in rows], dtype=float) for name in ("response_tokens", "peak"))
    slope, start = np.polyfit(lengths, peaks, 1)
    misses = np.abs(start + slope * lengths - peaks) / peaks
    return {"slope": slope, "start": start, "worst_miss": misses.max()}


def as_markdown(report: dict[str, Any]) -> str:
    rows = report["rows"]
    lines = [
        "| response tokens | peak of the process GiB | beyond its start | predicted | predicted / measured | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [row["peak"] / GIB, row["measured"] / GIB, row["predicted"] / GIB, row["predicted"] / row["measured"]]
        cells = [f"{row['response_tokens']:,}", *[f"{number:.2f}" for number in numbers], f"{row['seconds'] / 60:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if len(rows) > 2:
        line = report["line"]
        lines += [
            "",
            f"A straight line of {line['slope'] / 1e6:.2f} MB a response token ({report['group']} rollouts) from "
            f"{line['start'] / GIB:.2f} GiB on misses no row by more than {line['worst_miss']:.1%}.",
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="response tokens")
    parser.add_argument("--group", type=int, default=2, help="rollouts of the one prompt of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/long-rollouts"), help="without a suffix"
    )
    args = parser.parse_args()
    file = args.output.with_suffix(".json")
    report = {
        "machine": describe("cpu", args.threads, "float32"),
        "versions": VERSIONS,
        "group": args.group,
        "rows": [],
    }
    if file.exists():
        before = json.loads(file.read_text())
        if before["group"] != args.group:
            raise SystemExit(f"{file} was measured with --group {before['group']}")
        report["rows"] = [row for row in before["rows"] if row["response_tokens"] not in args.lengths]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models_of("qwen3", Path(folder))
        for length in args.lengths:
            report["rows"].append(measure(folder, length, args))
            report["rows"].sort(key=lambda row: row["response_tokens"])
            report["line"] = line_through(report["rows"]) if len(report["rows"]) > 2 else None
            file.write_text(json.dumps(report, indent=1) + "\n")
            args.output.with_suffix(".md").write_text(as_markdown(report))
            print(as_markdown(report), flush=True)


if __name__ == "__main__":
    main()
