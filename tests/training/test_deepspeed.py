"""Two processes under DeepSpeed's ZeRO-2 and ZeRO-3 (gloo, CPU), by the shipped files, learn what one process learns.

DOPD_DEEPSPEED_PYTHON names the Python of an environment with DeepSpeed and this toolkit
(docs/vllm-and-deepspeed.md says how to make one).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_jsonl
from dopd_vl.training.run import load_examples
from dopd_vl.training.student_copies import check_copies
from tests.training.distributed_worker import without_images
from tests.vllm_server import free_port

PYTHON = os.environ.get("DOPD_DEEPSPEED_PYTHON")
WORKER = Path(__file__).parent / "deepspeed_worker.py"
ROOT = WORKER.parents[2]
needs_deepspeed = pytest.mark.skipif(PYTHON is None, reason="DOPD_DEEPSPEED_PYTHON names no Python with DeepSpeed")

COMPARED = ("loss", "gap/", "token_share/", "grad_norm", "entropy/", "kept_mass", "eval_")


def write_config(world: str, processes: int, models: Path, data: Path, output: Path, objective: str) -> Path:
    """Two steps, eight greedy rollouts each, over all processes and slices."""
    config = output.with_suffix(".yaml")
    config.write_text(f"""
output_dir: {output}
model: {{student: {models}/{world}-student, teacher: {models}/{world}-teacher}}
data: {{train: {data}, eval: {data}, eval_size: 5}}
objective: {objective}
training:
  {{max_steps: 2, per_device_train_batch_size: {4 // processes}, gradient_accumulation_steps: 2, num_generations: 2,
   max_completion_length: 6, warmup_steps: 0, learning_rate: 1.0e-3, max_grad_norm: 0.5, save_steps: 1, eval_steps: 1,
   per_device_eval_batch_size: 1, gradient_checkpointing: false, eval_max_completion_length: 2}}
trl: {{top_k: 1}}
""")
    return config


def train(config: Path, processes: int, stage: int | None, *more: str) -> subprocess.CompletedProcess[str]:
    return launch(["train", "--config", config, *more], processes, stage)


def launch(words: list[object], processes: int, stage: int | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command: list[object] = [PYTHON]
    if stage is None:
        command += [WORKER]
    else:
        environment["DS_ACCELERATOR"] = "cpu"
        environment["PATH"] = f"{Path(str(PYTHON)).parent}:{environment['PATH']}"  # ninja is there
        command += ["-m", "accelerate.commands.launch", "--config_file", ROOT / f"configs/accelerate/zero{stage}.yaml"]
        command += ["--num_processes", processes, "--mixed_precision", "no", "--main_process_port", free_port(), WORKER]
    command += words
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=1200)


@needs_deepspeed
@pytest.mark.parametrize("data_of", ["text", "vision", "mixed"])
def test_two_processes_under_zero_learn_what_one_does(
    data_of: str, nano_models: Path, vision_data: Path, text_data: Path, tmp_path: Path
) -> None:
    world = "text" if data_of == "text" else "vision"
    data = {"vision": vision_data, "text": text_data, "mixed": tmp_path / "mixed"}[data_of]
    if data_of == "mixed":  # ranks without images beside ranks with them
        shutil.copytree(vision_data, data)
        rows = load_examples(str(vision_data))
        every_other = [without_images(row) if at % 2 else row for at, row in enumerate(rows)]
        [file] = data.glob("data/*.parquet")
        Dataset.from_list(every_other, features=rows.features).to_parquet(file)
    # As in test_distributed.py: a plan of scores alone, and one that projects the teacher's hidden states again.
    objective = {
        "text": "{name: dopd, settings: {top_k: 16}}",
        "vision": "{name: opd, settings: {divergence: js, teacher_view: privileged}}",
    }[world]
    for name, processes, stage in (("one", 1, None), ("zero2", 2, 2), ("zero3", 2, 3)):
        config = write_config(world, processes, nano_models, data, tmp_path / name, objective)
        done = train(config, processes, stage)
        assert done.returncode == 0, (name, done.stderr[-4000:])
    expected_rows = read_jsonl(tmp_path / "one" / "metrics.jsonl")
    expected = load_file(tmp_path / "one" / "student" / "model.safetensors")
    for name in ("zero2", "zero3"):
        folder = tmp_path / name
        assert list((folder / "checkpoint-2" / "global_step2").glob("*_rank_1_*optim_states.pt")), "not in shards"
        for ours, theirs in zip(read_jsonl(folder / "metrics.jsonl"), expected_rows, strict=True):
            for key, value in theirs.items():
                if key.startswith(COMPARED) and not (world == "vision" and key.startswith("entropy/")):
                    assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, key)
        weights = load_file(folder / "student" / "model.safetensors")
        if name == "zero2":  # accelerate gathers a tied head as if it were a weight of its own
            head = weights.pop("lm_head.weight")
            assert torch.equal(head, next(weight for key, weight in weights.items() if "embed_tokens" in key))
        assert weights.keys() == expected.keys()
        for key, weight in weights.items():
            assert torch.allclose(weight, expected[key], atol=2e-5), (name, key)


@needs_deepspeed
def test_a_run_under_zero3_goes_on_from_its_checkpoint(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = write_config("text", 2, nano_models, text_data, output, "{name: opd}")
    assert train(config, 2, 3).returncode == 0
    expected = load_file(output / "student" / "model.safetensors")
    rows = read_jsonl(output / "metrics.jsonl")
    for name in ("checkpoint-2", "student"):
        (output / name).rename(tmp_path / name)
    again = train(config, 2, 3, "--resume", "true")
    assert again.returncode == 0, again.stderr[-4000:]
    assert "goes on from checkpoint-1" in again.stdout
    weights = load_file(output / "student" / "model.safetensors")
    for key, weight in weights.items():
        assert torch.allclose(weight, expected[key], atol=2e-5), key
    assert [row["step"] for row in read_jsonl(output / "metrics.jsonl")] == [row["step"] for row in rows]


@needs_deepspeed
def test_a_head_that_learns_and_the_bases_own_are_whole_where_they_act_under_zero3(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    found = {}
    for name, processes, stage in (("one", 1, None), ("zero3", 2, 3)):
        done = launch(["head", nano_models / "text-student", text_data, tmp_path / name], processes, stage)
        assert done.returncode == 0, (name, done.stderr[-4000:])
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["zero3"]["shape"] == [0], "not in shards"
    for ours, theirs in zip(found["zero3"]["log"], found["one"]["log"], strict=True):
        for key in ("loss", "grad_norm", "entropy/start/privileged"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize(("policy", "has_adapters"), [("start", False), ("average", False), ("average", True)])
def test_copies_of_the_student_are_refused_under_zero3_alone(policy: str, has_adapters: bool) -> None:
    with pytest.raises(UserError, match=rf"objective\.name: .*\({policy}\).*ZeRO-3; use ZeRO-2, FSDP2"):
        check_copies({"teacher", policy}, has_adapters, 3)
    check_copies({"teacher", policy}, has_adapters, 2)


def test_the_base_model_under_adapters_needs_no_copy() -> None:
    check_copies({"teacher", "start"}, True, 3)
    check_copies({"teacher", "student"}, False, 3)
