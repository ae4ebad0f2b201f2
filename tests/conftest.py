"""Shared by all tests: one torch thread, and small untrained models as ordinary Hugging Face folders."""

import copy
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest


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


def prepare_nano(folder: Path, world: str, split: str, size: int) -> Path:
    """A privileged data set of the nano world."""
    from rich.console import Console

    from dopd_vl.nano.source import NanoSource
    from privileged.config import PrepareConfig, SourceConfig
    from privileged.prepare import prepare

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
