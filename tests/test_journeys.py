"""docs/journeys: the files of each page are saved under their names there, and its commands typed as they stand."""

import base64
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

from dopd_vl.common.files import read_jsonl
from dopd_vl.common.run_layout import COMPLETE_FILE, METRICS_FILE
from privileged import load_privileged
from tests.commands import ROOT, run_script
from tests.pages import blocks_of, commands_of, type_in, write_files
from tests.privileged.answering import Answering

PAGES = "docs/journeys"


def boxes_in(body: dict[str, Any]) -> str:
    """What a vision model would reply about a drawn shelf: a box around each thing of the kind that is asked for."""
    image, text = body["messages"][1]["content"]
    data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    label, colour = ("mug", (178, 34, 34)) if "mugs" in text["text"] else ("tin", (70, 130, 180))
    there = np.abs(pixels - colour).max(-1) < 50
    edges = np.flatnonzero(np.diff(there.any(0), prepend=False, append=False))
    boxes = []
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        rows = np.flatnonzero(there[:, left:right].any(1))
        shares = [left / width, rows[0] / height, right / width, (rows[-1] + 1) / height]
        boxes.append({"bbox_2d": [round(1000 * share) for share in shares], "label": label})
    return json.dumps(boxes)


def test_from_a_folder_of_photos_to_an_exported_student(tmp_path: Path) -> None:
    page = f"{PAGES}/product-photos.md"
    write_files(tmp_path, page)
    server = Answering(lambda part, body, seen: boxes_in(body) if part == "boxes" else None)
    settings = tmp_path / "products.yaml"
    with server.serving() as url:
        settings.write_text(settings.read_text().replace("http://localhost:8000/v1", url))
        for command in commands_of(page):
            type_in(tmp_path, command)

    rows = load_privileged(tmp_path / "runs/data/products", cache_dir=str(tmp_path / "cache"))
    assert all(len(row["privileged"]["boxes"]) == int(row["answer"]) for row in rows)
    (aside,) = read_jsonl(tmp_path / "runs/data/products/rejected.jsonl")
    assert "no box in any image" in aside["reason"]
    for split in ("products", "products-plain", "products-heldout"):
        assert Image.open(tmp_path / f"runs/data/{split}/sample.png").width > 300
    assert "<html" in (tmp_path / "products.html").read_text(encoding="utf-8")
    with safe_open(tmp_path / "product-counter/model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118


def test_from_questions_with_hints_to_a_study_of_variants_with_more_seeds_later(tmp_path: Path) -> None:
    page = f"{PAGES}/text-variants.md"
    write_files(tmp_path, page)
    *before, first, more = commands_of(page)
    for command in before:
        type_in(tmp_path, command)
    (aside,) = [row for row in read_jsonl(tmp_path / "runs/data/problems/rejected.jsonl") if row["stage"] == "audit"]
    assert aside["id"] == "train-5"
    assert "answer_in_hint" in aside["reason"]
    assert "| other_hints |" not in (tmp_path / "runs/data/problems/README.md").read_text()

    study = tmp_path / "runs/studies/variants-small"
    type_in(tmp_path, first)
    finished = {path: path.stat().st_mtime_ns for path in study.glob("runs/*/seed-0/metrics.jsonl")}
    assert len(finished) == 5
    type_in(tmp_path, more)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "what was done is done"
    assert {path.parent.name for path in study.glob("runs/*/seed-1")} == {
        *("none", "hints", "hint-summary", "final-answer", "other-hints", "vanilla"),
    }
    results = (study / "results.md").read_text()
    for column in ("held-out", "with hints", "gap recovered", "less none (95 %)", "p (Holm)"):
        assert f"| {column} |" in results
    assert "| cell | illusion score (nats) |" in results
    assert r"\begin{tabular}" in (study / "results.tex").read_text()


def test_from_rows_of_ones_own_to_a_student_in_python_alone(tmp_path: Path) -> None:
    page = f"{PAGES}/from-python.md"
    (tmp_path / "script.py").write_text("".join(blocks_of(page, "python")), encoding="utf-8")
    result = run_script(tmp_path / "script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "duplicate_record" in result.stdout
    assert "'token_share/wrong'" in result.stdout, "what the page's objective tells apart is logged"
    assert "best accuracy" in result.stdout
    assert "wrong\\-rollouts" in (tmp_path / "my-student/README.md").read_text()


def launch(folder: Path, command: str) -> subprocess.Popen[str]:
    """`accelerate launch ...` under way, in a session of its own."""
    program, *words = shlex.split(command)
    assert (program, words[0]) == ("accelerate", "launch")
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def test_a_run_of_two_processes_is_killed_goes_on_and_is_exported(tmp_path: Path) -> None:
    page = f"{PAGES}/eight-gpus.md"
    write_files(tmp_path, page)
    run = tmp_path / "runs" / "trial"
    for command in commands_of(page):
        if command.startswith("sbatch "):
            continue  # tests/test_cluster.py
        if not command.startswith("accelerate "):
            type_in(tmp_path, command)
            continue
        first = launch(tmp_path, command)
        until = time.monotonic() + 300
        while not any(run.glob(f"checkpoint-*/{COMPLETE_FILE}")):
            assert first.poll() is None, first.communicate()[0][-3000:]
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        assert not (run / "student").exists()
        said, _ = launch(tmp_path, command).communicate(timeout=300)
        assert "goes on" in said, said[-3000:]
    assert [row["step"] for row in read_jsonl(run / METRICS_FILE) if "loss" in row] == list(range(1, 31))
    assert list(run.rglob("events.out.tfevents.*"))
    assert "<html" in (tmp_path / "trial.html").read_text(encoding="utf-8")
    assert (tmp_path / "trial-student" / "model.safetensors").is_file()
