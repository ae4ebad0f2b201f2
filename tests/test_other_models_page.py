"""The page on other model families: its commands name what there is and, where downloads are allowed, are run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dopd_vl.common.configuration import read_config
from dopd_vl.common.files import read_jsonl
from dopd_vl.train_config import TrainConfig
from tests.pages import ROOT, commands_of
from tests.test_other_models import check_run

COMMANDS = commands_of("docs/other-models.md")


@pytest.mark.skipif(os.environ.get("DOPD_VL_DOWNLOADS") != "1", reason="downloads 450 MB and trains for half an hour")
def test_the_commands_of_the_page_train_a_pretrained_model(tmp_path: Path) -> None:
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (ROOT / "runs" / "downloads").mkdir(parents=True, exist_ok=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "downloads").symlink_to(ROOT / "runs" / "downloads")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("HF_HUB_OFFLINE")
    run = tmp_path / "runs" / "smollm2-dopd"
    kept = ("metrics.jsonl", "rollouts.jsonl", "student/adapter_model.safetensors")
    finished: dict[str, bytes] = {}
    for command in COMMANDS:
        if "--resume" in command:  # as if the run had been stopped after its second checkpoint
            finished = {name: (run / name).read_bytes() for name in kept}
            for name in ("student", "checkpoint-30"):
                shutil.rmtree(run / name)
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    assert {name: (run / name).read_bytes() for name in kept} == finished
    base = tmp_path / "runs" / "models" / "smollm2"
    for objective in ("dopd", "dopd-anchored"):
        check_run(run.with_name(f"smollm2-{objective}"), base, steps=30, objective=objective)
    scores = json.loads((tmp_path / "runs/evaluate/smollm2-dopd-bigbench-heldout/scores.json").read_text())
    (last,) = [row for row in read_jsonl(run / "metrics.jsonl") if row["step"] == 30 and "eval_accuracy" in row]
    assert scores["accuracy"] == last["eval_accuracy"]


def test_the_page_names_settings_that_there_are() -> None:
    trains = [words[2:] for words in map(shlex.split, COMMANDS) if words[:2] == ["dopd-vl", "train"]]
    assert len(trains) == 3
    for words in trains:
        config = read_config(TrainConfig, words, "test")
        assert config.model.student == config.model.teacher == "runs/models/smollm2"
        assert config.model.lora is not None
        assert config.training.max_steps == 30
