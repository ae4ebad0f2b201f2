"""Shared by all tests: one torch thread, the same hypothesis examples on every run, small models, data and trainers."""

import copy
import os
import shutil
import subprocess

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # what is kernels on a GPU runs on a CPU; to be said before any import
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("reproducible")

MakeTrainer = Callable[..., Any]
"""Makes a `DopdTrainer` on the nano models; keyword arguments are settings of `DopdConfig`, or
some of the trainer's own."""


@pytest.fixture(scope="session")
def nano_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained vision-teacher, vision-student, text-teacher and text-student."""
    import torch

    from dopd_vl.nano.models import SHAPES, build_model
    from dopd_vl.nano.tokenizer import corpus, nano_processor, train_tokenizer

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(corpus(200, seed=0))
    processor = nano_processor(copy.deepcopy(tokenizer))  # saving a processor leaves its mark on its tokenizer
    for name, shape in SHAPES.items():
        build_model(name, tokenizer, seed=1).save_pretrained(folder / name)
        (processor if shape.family == "vision" else tokenizer).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def families(nano_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a family of `tests/families.py` the folder with its untrained student and teacher, named as in `nano_models`;
    of any other name `nano_models` itself."""
    from tests.families import TEXT, VISION, make_family

    folder = tmp_path_factory.mktemp("families")

    def models_of(family: str) -> Path:
        if family not in (*VISION, *TEXT):
            return nano_models
        if not (folder / family).exists():
            make_family(family, nano_models, folder / family)
        return folder / family

    return models_of


def prepare_nano(folder: Path, world: str, split: str, size: int) -> Path:
    """A privileged data set of the nano world."""
    from rich.console import Console

    from dopd_vl.nano.source import NanoSource
    from privileged.prepare.config import PrepareConfig, SourceConfig
    from privileged.prepare.prepare import prepare

    options = {"world": world, "split": split, "size": size, "seed": 0}
    config = PrepareConfig(source=SourceConfig(kind="nano", options=options), output=str(folder))
    prepare(config, {"nano": NanoSource}, Console(quiet=True))
    return folder


@pytest.fixture(scope="session")
def vision_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training examples of the vision world."""
    return prepare_nano(tmp_path_factory.mktemp("data") / "vision", "vision", "train", 24)


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training examples of the text world."""
    return prepare_nano(tmp_path_factory.mktemp("data") / "text", "text", "train", 24)


@pytest.fixture
def make_trainer(nano_models: Path, vision_data: Path, text_data: Path, tmp_path: Path) -> MakeTrainer:
    from dopd_vl import DopdConfig, DopdTrainer
    from dopd_vl.training.run import load_examples

    def make(world: str = "vision", objective: Any = None, dataset: Any = None, **settings: Any) -> Any:
        data = {"vision": vision_data, "text": text_data}[world]
        defaults = {
            "max_steps": 1,
            "per_device_train_batch_size": 4,
            "max_completion_length": 6,
            "num_generations": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "linear",
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": "none",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "seed": 3,
        }
        of_trainer = ("peft_config", "eval_dataset", "processing_class", "callbacks", "teachers")
        extra = {name: settings.pop(name) for name in of_trainer if name in settings}
        student, teacher = (settings.pop(role, str(nano_models / f"{world}-{role}")) for role in ("student", "teacher"))
        return DopdTrainer(
            student,
            teacher,
            DopdConfig(str(tmp_path / "run"), **{**defaults, **settings}),
            train_dataset=load_examples(str(data)) if dataset is None else dataset,
            objective=objective,
            **extra,
        )

    return make


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, or of what `parametrize(..., indirect=True)` says."""
    size = getattr(request, "param", "64m")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here; limits of a file's size stand in for it elsewhere")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def serve(nano_models: Path) -> Iterator[Callable[..., Any]]:
    """Starts a `TeacherServer` of one of the small models by its name."""
    from tests.teacher_server import TeacherServer

    begun: list[TeacherServer] = []

    def start(name: str | Path = "text-teacher", **settings: Any) -> TeacherServer:
        begun.append(TeacherServer(nano_models / name, **settings))
        return begun[-1]

    yield start
    for server in begun:
        server.close()


@pytest.fixture
def other_teacher(nano_models: Path, tmp_path: Path) -> Path:
    """A text teacher of another size, with other weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(nano_models / "text-student")
    torch.manual_seed(11)
    for weight in model.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(nano_models / "text-teacher").save_pretrained(folder)
    return folder
