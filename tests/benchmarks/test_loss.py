"""The loss's benchmark, at a size that takes no time: every way computes, from the same tensors, and is measured."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("loss")


@pytest.fixture
def tensors(benchmark: Any) -> dict[str, torch.Tensor]:
    return benchmark.make_tensors(benchmark.Shape(vocabulary=300, hidden=8, teacher_hidden=12), tokens=20)


def test_the_same_tensors_are_drawn_again(benchmark: Any, tensors: dict[str, torch.Tensor]) -> None:
    torch.rand(7)  # what else is drawn in the process makes no difference
    again = benchmark.make_tensors(benchmark.Shape(vocabulary=300, hidden=8, teacher_hidden=12), tokens=20)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


def test_every_way_is_measured(benchmark: Any, tensors: dict[str, torch.Tensor]) -> None:
    for way in ("floor", "ours", "naive", "trl", "trl reverse KL"):
        row = benchmark.measure_way(way, tensors, repeats=2)
        assert row["seconds"] > 0, way


def test_ours_is_the_naive_loss(benchmark: Any, tensors: dict[str, torch.Tensor]) -> None:
    for ours, naive in zip(benchmark.ours(tensors), benchmark.naive(tensors), strict=True):
        assert torch.allclose(ours, naive, atol=1e-6)


def test_what_does_not_fit_a_gpu_is_left_out_and_the_rest_measured(
    monkeypatch: pytest.MonkeyPatch, benchmark: Any, tensors: dict[str, torch.Tensor]
) -> None:
    def full(_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setitem(benchmark.WAYS, "naive", full)
    monkeypatch.setattr(benchmark, "make_tensors", lambda shape, tokens: tensors)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    rows = benchmark.measure(benchmark.Shape(device="cuda"), 20, ["naive", "ours"])
    assert rows["naive"] is None
    assert rows["ours"]["seconds"] > 0
