"""Two processes (gloo, CPU) learn what one process learns: under DDP and under FSDP2, text and vision.

Their rollouts end at different lengths, and they share the held-out examples unequally.
"""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dopd_vl.common.files import read_jsonl
from dopd_vl.training.freezing import part_of
from tests.commands import Fork
from tests.training.distributed_worker import (
    learn,
    learn_from_several,
    learn_mixed,
    learn_passing_over,
    lose_a_teacher,
)

LAYERS = {
    "text": "Qwen3DecoderLayer",
    "vision": "Qwen3VLTextDecoderLayer,Qwen3VLVisionBlock",
    "qwen3_5": "Qwen3_5DecoderLayer,Qwen3_5VisionBlock",
}
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


APART = 2e-5
"""Nats by which one token's loss, and units by which a weight, may differ after two steps: sums in another order, and
the steps on the weights that these led to."""


def tolerance(name: str, row: dict[str, float]) -> float:
    """How far apart a metric of two runs may be, beyond its own 1e-4.

    A part's share of the loss is a ratio of sums, s = L_part / L. Where each of n tokens moves by at most d, L moves by
    n d and L_part by n_part d, so s moves by at most (n_part / n + s) d / (L / n).
    """
    if not name.startswith("loss_share/"):
        return APART
    part = name.removeprefix("loss_share/")
    return (row[f"token_share/{part}"] + row[name]) * APART / row["token_loss"]


def run_in(processes: int, environment: dict[str, str], function: Any, *arguments: Any) -> None:
    shared = {"ACCELERATE_USE_CPU": "true", **environment}
    if processes > 1:  # what torchrun sets
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), **shared} if processes > 1 else shared for r in range(processes)]
    forks = [Fork(function, *arguments, env=env) for env in ranks]
    results = [fork.result(400) for fork in forks]
    assert all(result.returncode == 0 for result in results), "\n\n".join(
        result.stderr.split("Extension modules")[0][-6000:] for result in results
    )


def learn_in(
    processes: int, world: str, models: Path, data: Path, output: Path, environment: dict[str, str], *more: Any
) -> Path:
    output.mkdir()
    run_in(processes, environment, learn, models, data, output, world, processes, *more)
    return output


@pytest.mark.parametrize("family", ["text", "vision", "qwen3_5"])
def test_two_processes_learn_what_one_does(
    family: str, families: Callable[[str], Path], vision_data: Path, text_data: Path, tmp_path: Path
) -> None:
    world, models = "text" if family == "text" else "vision", families(family)
    data = {"vision": vision_data, "text": text_data}[world]
    one = learn_in(1, world, models, data, tmp_path / "one", {})
    layers = {"FSDP_TRANSFORMER_CLS_TO_WRAP": LAYERS[family]}
    two = {
        "DistributedDataParallel": learn_in(2, world, models, data, tmp_path / "ddp", {}),
        "FSDP": learn_in(2, world, models, data, tmp_path / "fsdp", {**FSDP2, **layers}),
    }
    expected_log = json.loads((one / "log.json").read_text())
    expected = load_file(one / "model.safetensors")
    for kind, folder in two.items():
        assert json.loads((folder / "kind.json").read_text())[0].startswith(kind)
        for ours, theirs in zip(json.loads((folder / "log.json").read_text()), expected_log, strict=True):
            for name in theirs:
                if name == "entropy" or (world == "vision" and name.startswith("entropy/")):
                    # TRL's is the mean of the slices' means, and slices differ. The vision objective reads no scores:
                    # its are of the first process's kept rollouts alone.
                    continue
                kinds = ("loss", "gap/", "token_share/", "grad_norm", "entropy", "kept_mass", "eval_", "completions")
                if name.startswith(kinds):
                    bound = tolerance(name, theirs)
                    assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=bound), (kind, name)
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert torch.allclose(weight, expected[name], atol=APART), (kind, name)


@pytest.mark.parametrize("frozen", ["vision", "language"])
def test_two_processes_freeze_what_one_does(frozen: str, nano_models: Path, vision_data: Path, tmp_path: Path) -> None:
    sharding = {**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": LAYERS["vision"]}
    one, ddp, fsdp = (
        load_file(
            learn_in(processes, "vision", nano_models, vision_data, tmp_path / name, environment, (frozen,))
            / "model.safetensors"
        )
        for processes, name, environment in ((1, "one", {}), (2, "ddp", {}), (2, "fsdp", sharding))
    )
    before = load_file(nano_models / "vision-student" / "model.safetensors")
    for name, weight in before.items():
        for after in (one, ddp, fsdp):
            assert torch.equal(after[name], weight) or part_of(name) != frozen, name
            assert torch.allclose(after[name], one[name], atol=APART), name
    assert any(not torch.equal(one[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("sharded", ["ddp", "fsdp"])
@pytest.mark.parametrize("objective", ["dopd", "opd"])
def test_wrappers_change_no_supervision(
    objective: str, sharded: str, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    """In bf16, with pictures on one rank alone, and the teacher in shards."""
    environment = {**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": LAYERS["vision"]} if sharded == "fsdp" else {}
    environment |= {"ACCELERATE_MIXED_PRECISION": "bf16", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    run_in(2, environment, learn_mixed, nano_models, vision_data, tmp_path, objective)
    ranks = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert [max(found["images"]) for found in ranks] == [2, 0]
    for found in ranks:
        assert found["kind"].startswith({"ddp": "DistributedDataParallel", "fsdp": "FSDP"}[sharded])
        assert found["teacher_kind"].startswith("FSDP")
        assert all(found["scores"])
        assert found["scores"]
        assert found["teacher"] == [0.0] * len(found["teacher"])
        assert found["teacher"]
        assert all(found["plan"])
        assert found["plan"]
        inside, outside = found["loss"]
        assert inside == outside != 0.0
    assert ranks[0]["grad_norm"] == ranks[1]["grad_norm"] > 0.0
    if sharded == "fsdp":  # where each pass must be all ranks', but for rollouts, which are drawn from a whole student
        assert ranks[0]["towers"] == {**ranks[1]["towers"], "student": ranks[1]["towers"]["student"] + 1}


@pytest.mark.parametrize("sharded", ["ddp", "fsdp"])
def test_a_rank_without_a_usable_example_takes_part_with_weight_zero(
    sharded: str, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    """In the first step the second rank has none, in the second step neither has, in the third both have one."""
    environment = {**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": LAYERS["vision"]} if sharded == "fsdp" else {}
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, folder, usable in ((1, one, [True]), (2, two, [True, False, False, False, True, True])):
        folder.mkdir()
        run_in(
            processes,
            environment if processes > 1 else {},
            learn_passing_over,
            nano_models,
            vision_data,
            folder,
            usable,
        )
    assert json.loads((two / "kind.json").read_text()).startswith(
        {"ddp": "DistributedDataParallel", "fsdp": "FSDP"}[sharded]
    )
    [alone, *_] = json.loads((one / "log.json").read_text())
    rows = json.loads((two / "log.json").read_text())[:3]
    assert [row["usable_rollouts"] for row in rows] == [0.5, 0.0, 1.0]
    assert (rows[1]["loss"], rows[1]["grad_norm"]) == (0.0, 0.0)
    assert rows[2]["loss"] > 0.0
    for name in ("loss", "grad_norm", "token_loss", "gap/threshold"):
        assert rows[0][name] == pytest.approx(alone[name], rel=1e-4, abs=APART), name
    refused = read_jsonl(two / "refused.jsonl")
    assert [row["step"] for row in refused] == [1, 2, 2]
    assert len({row["id"] for row in refused}) == 3


def test_several_teachers_in_shards_teach_what_they_do_in_one_process(
    nano_models: Path, text_data: Path, other_teacher: Path, tmp_path: Path
) -> None:
    """Each rank needs another of them, and both take part in every pass of each."""
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, folder in ((1, one), (2, two)):
        folder.mkdir()
        run_in(processes, {}, learn_from_several, nano_models, text_data, folder, other_teacher)
    assert all(kind.startswith("FSDP") for kind in json.loads((two / "kind.json").read_text()))
    for ours, theirs in zip(*(json.loads((f / "log.json").read_text()) for f in (two, one)), strict=True):
        for name in theirs:
            if name.startswith(("loss", "grad_norm", "logp/teacher", "token_share/teacher", "rollout_accuracy")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=tolerance(name, theirs)), name
    expected = load_file(one / "model.safetensors")
    for name, weight in load_file(two / "model.safetensors").items():
        assert torch.allclose(weight, expected[name], atol=APART), name


def test_a_served_teacher_that_fails_one_rank_ends_all_with_a_checkpoint(
    nano_models: Path, text_data: Path, serve: Any, tmp_path: Path
) -> None:
    server = serve()
    run_in(2, {}, lose_a_teacher, nano_models, text_data, tmp_path, server.address)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert "does not answer, and was waited for" in told[0]
    [checkpoint] = (tmp_path / "run").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-1"
    assert (checkpoint / "complete.json").is_file()
