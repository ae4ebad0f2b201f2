"""What preparation and annotation cost: requests in flight, memory, records a second.

    python benchmarks/prepare.py                            # some minutes on a CPU
    python benchmarks/prepare.py --sizes 1000 10000 --images 500 --requests 500
    python benchmarks/prepare.py --tables in_flight annotated

In flight: a server of its own answers after a random time (log-normal, median 1 s); it counts the requests that it
holds, from the moment when the limit is first reached until the last request has come. Memory and speed: each
preparation runs in a process of its own, without annotation and, in a table of its own, with it. `datasets.map` reads
the same files, decodes each image and writes the same columns to parquet, without checks and without annotation.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from chat_server import serving
from machine import describe
from PIL import Image

TABLES = ("in_flight", "annotated", "speed", "memory")
CHILD = """
import io, json, sys, time
from rich.console import Console
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.annotators.settings import AnnotateConfig
from privileged.prepare.prepare import prepare
import datasets, pyarrow.parquet
if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    source = SourceConfig("jsonl", {"path": settings.pop("path")}, default_task="exact")
    annotate = settings.pop("annotate", None)
    config = PrepareConfig(source, **settings, annotate=AnnotateConfig(**annotate) if annotate else None)
    start = time.perf_counter()
    result = prepare(config, console=Console(file=io.StringIO()))
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024  # ru_maxrss would count what the parent held at the fork
    print(json.dumps({"records": result.records, "seconds": seconds, "peak_mib": peak}))
"""
MAP = """
import json, sys, time
from pathlib import Path
import datasets
from PIL import Image
if __name__ == "__main__":
    path, output, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    from privileged.schema import features
    rows = [json.loads(line) for line in open(path)]
    start = time.perf_counter()
    data = datasets.Dataset.from_list([{"line": json.dumps(row)} for row in rows])

    def make(entry):
        row = json.loads(entry["line"])
        bytes_ = (Path(path).parent / row["images"][0]).read_bytes()
        Image.open(Path(path).parent / row["images"][0]).convert("RGB").load()
        empty = {"final_answer": row["answer"], "hints": row["privileged"]["hints"], "hints_executed": [],
                 "hint_summary": None, "caption": None, "boxes": [], "wrong_hint": None, "provenance": "source"}
        return {"id": row["id"], "prompt": [{"role": "user", "content": row["prompt"]}],
                "images": [{"bytes": bytes_, "path": None}], "answer": row["answer"], "task": "exact",
                "source": "records", "privileged": empty, "illusion_score": None}

    done = data.map(make, remove_columns=["line"], features=features(), num_proc=processes or None)
    done.to_parquet(output)
    print(json.dumps({"records": len(done), "seconds": time.perf_counter() - start}))
"""


def in_flight(folder: Path, limit: int, requests: int, images: bool) -> dict[str, Any]:
    """The server's count while `requests` are made for half as many records: hints and their recheck."""
    path = write_records(folder / "flight", requests // 2, images, hints=False)
    with serving(limit, 1.0) as (url, report):
        done = annotated(folder, path, url, limit)
        return {**report(), "peak_mib": done["peak_mib"], "limit": limit, "images": images}


def annotated_memory(folder: Path, limit: int, sizes: list[int]) -> list[dict[str, float]]:
    """Two requests a record, to a server that answers nearly at once."""
    rows = []
    for size in sizes:
        path = write_records(folder / f"annotated-{size}", size, images=False, hints=False)
        with serving(limit, 0.02) as (url, _):
            rows.append(annotated(folder, path, url, limit))
    return rows


def annotated(folder: Path, path: Path, url: str, limit: int) -> dict[str, float]:
    annotate = {"url": url, "model": "m", "key_env": None, "concurrency": limit}
    done = child({"path": str(path), "output": str(folder / "annotated"), "annotate": annotate})
    shutil.rmtree(folder / "annotated")
    shutil.rmtree(folder / "annotated.replies")
    return done


def write_records(folder: Path, count: int, images: bool, hints: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "records.jsonl"
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(count):
            row: dict[str, Any] = {
                "id": f"r{number}",
                "prompt": f"What comes after item {number}?",
                "answer": "a heron",
            }
            if hints:
                row["privileged"] = {"hints": ["Look at the terms.", "Combine them."]}
            if images:
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC)
                picture.save(folder / f"{number}.jpg", quality=90)
                row["images"] = [f"{number}.jpg"]
            file.write(json.dumps(row) + "\n")
    return path


def child(settings: dict[str, Any]) -> dict[str, float]:
    return run_python(CHILD, [json.dumps(settings)])


def run_python(script: str, arguments: list[str]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:  # a file: spawned workers read it again
        file.write(script)
        file.flush()
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, file.name, *arguments], capture_output=True, text=True, check=True, env=environment
        )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def memory(folder: Path, sizes: list[int]) -> list[dict[str, float]]:
    rows = []
    for size in sizes:
        path = write_records(folder / str(size), size, images=False)
        rows.append(child({"path": str(path), "output": str(folder / f"{size}-out")}))
        shutil.rmtree(folder / f"{size}-out")
    return rows


def speed(folder: Path, images: int) -> list[dict[str, Any]]:
    path = write_records(folder / "images", images, images=True)
    rows: list[dict[str, Any]] = []
    for workers in (0, 1, 2):
        output = folder / f"images-{workers}"
        done = child({"path": str(path), "output": str(output), "workers": workers})
        rows.append({"way": "prepare", "processes": workers, **done})
        plain = run_python(MAP, [str(path), str(folder / f"plain-{workers}.parquet"), str(workers)])
        rows.append({"way": "datasets.map", "processes": workers, **plain})
    return rows


def as_markdown(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"{report['machine']}; {versions}. {report['remark']}", ""]
    lines += ["| requests | records with images | allowed in flight | in flight on average | share | peak MiB |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in report.get("in_flight", []):
        lines.append(
            f"| {row['requests']:,} | {'yes' if row['images'] else 'no'} | {row['limit']} | "
            f"{row['share'] * row['limit']:.1f} | {row['share']:.1%} | {row['peak_mib']:.0f} |"
        )
    lines += ["", "| tiny text records | seconds | records/s | peak MiB |", "|---|---|---|---|"]
    for row in report.get("memory", []):
        rate = row["records"] / row["seconds"]
        lines.append(f"| {row['records']:,} | {row['seconds']:.1f} | {rate:,.0f} | {row['peak_mib']:.0f} |")
    lines += ["", "| annotated text records | seconds | records/s | peak MiB |", "|---|---|---|---|"]
    for row in report.get("annotated", []):
        rate = row["records"] / row["seconds"]
        lines.append(f"| {row['records']:,} | {row['seconds']:.1f} | {rate:,.0f} | {row['peak_mib']:.0f} |")
    lines += ["", "| image records (640 x 480 JPEG) | processes | records/s |", "|---|---|---|"]
    for row in report.get("speed", []):
        lines.append(f"| {row['way']} | {row['processes']} | {row['records'] / row['seconds']:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", choices=TABLES, nargs="+", default=TABLES, help="the others stay as they are")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--annotated", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--remark", default="", help="what else the machine did meanwhile")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prepare"), help="path without a suffix")
    args = parser.parse_args()
    written = args.output.with_suffix(".json")
    report: dict[str, Any] = json.loads(written.read_text()) if written.is_file() else {}
    report |= {
        "machine": describe("cpu", os.cpu_count() or 1, "processes as the tables say"),
        "versions": {name: version(name) for name in ("datasets", "pyarrow", "openai", "pillow")},
        "remark": args.remark,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "in_flight": lambda: [in_flight(folder, args.limit, args.requests, images) for images in (False, True)],
            "annotated": lambda: annotated_memory(folder, args.limit, args.annotated),
            "speed": lambda: speed(folder, args.images),
            "memory": lambda: memory(folder, args.sizes),
        }
        for table in args.tables:
            report[table] = measure[table]()
            print(table, report[table], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
