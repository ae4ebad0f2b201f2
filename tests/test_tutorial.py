"""docs/tutorial.md and docs/routing.ipynb: every command is typed, with small sizes, and every cell is run."""

import contextlib
import io
import json
import re
import shlex
import signal
import time
from pathlib import Path

import matplotlib
import pytest
import yaml

from dopd_vl.common.files import read_jsonl
from dopd_vl.common.run_layout import COMPLETE_FILE, METRICS_FILE
from tests.commands import start_dopd_vl
from tests.pages import ROOT, blocks_of, commands_of, type_in

STEPS = 4
SHORT = [
    "--training.max_steps", str(STEPS), "--training.eval_steps", "2", "--training.save_steps", "1",
    "--training.per_device_train_batch_size", "2", "--training.max_completion_length", "6", "--data.eval_size", "4",
]  # fmt: skip
SMALL = {
    "prepare": ["--limit", "12"],
    "train": SHORT,
    "evaluate": ["--size", "4", "--max_new_tokens", "6"],
    "study": ["--seeds", "[0]", "--score_variants", "[none]"],
    "report": [],
}


def kill_after_a_checkpoint(run: Path, folder: Path, command: str, *more: str) -> None:
    """Type the command, and kill it as soon as its run has a whole checkpoint."""
    fork = start_dopd_vl(*shlex.split(command)[1:], *more, cwd=folder)
    until = time.monotonic() + 300
    while not any(run.glob(f"checkpoint-*/{COMPLETE_FILE}")):
        assert fork.process.is_alive(), "the run ended before it had a checkpoint"
        assert time.monotonic() < until
        time.sleep(0.01)
    fork.send(signal.SIGKILL)
    assert fork.result(60).returncode == -signal.SIGKILL


def test_the_commands_work_one_after_another(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tutorial"
    (study,) = blocks_of("docs/tutorial.md", "yaml")
    (tmp_path / "two-methods.yaml").write_text(study)
    world = yaml.safe_load((ROOT / "configs" / "study" / "worlds" / "nano-text.yaml").read_text())["settings"]
    short = {key.removeprefix("--"): yaml.safe_load(value) for key, value in zip(SHORT[::2], SHORT[1::2], strict=True)}
    small = {**SMALL, "study": [*SMALL["study"], "--settings", json.dumps({**world, **short})]}
    typed = []
    for command in commands_of("docs/tutorial.md"):
        before, _, words = command.partition("dopd-vl ")
        typed.append(words.split()[0])
        command, more = f"dopd-vl {words}", small[typed[-1]]
        if before:
            assert before.startswith("timeout --signal KILL ")
            kill_after_a_checkpoint(run, tmp_path, command, *more)
        else:
            type_in(tmp_path, command, *more)
    assert set(typed) == set(SMALL)
    assert (tmp_path / "runs" / "data" / "nano-text-train" / "sample.html").is_file()
    assert [row["step"] for row in read_jsonl(run / METRICS_FILE) if "loss" in row] == list(range(1, STEPS + 1))
    assert (run / "student" / "README.md").is_file()
    for page in ("tutorial.html", "two-methods.html"):
        assert "<html" in (tmp_path / page).read_text(encoding="utf-8")
    assert "DOPD-anchored" in (tmp_path / "runs/studies/nano-text/two-methods/results.md").read_text()


def apart(text: str) -> tuple[str, list[float]]:
    """A text without its decimal numbers, and these."""
    number = r"-?\d+\.\d+"
    return re.sub(number, "#", text), [float(found) for found in re.findall(number, text)]


def test_the_notebook_shows_what_its_cells_print() -> None:
    matplotlib.use("Agg")
    notebook = json.loads((ROOT / "docs" / "routing.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    pictures = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        shown = "".join(text for output in cell["outputs"] for text in output.get("text", []))
        # Another processor may round the last digit that is shown the other way.
        (words, numbers), (shown_words, shown_numbers) = apart(printed.getvalue()), apart(shown)
        assert words == shown_words, cell["id"]
        assert numbers == pytest.approx(shown_numbers, abs=0.011), cell["id"]
        pictures += sum("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert pictures == 1
    regimes = names["output"].regime.unique().tolist()  # type: ignore[attr-defined]
    assert regimes == [0, 1, 2, 3], "the rollout has a token of each regime"
