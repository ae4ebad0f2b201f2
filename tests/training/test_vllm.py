"""Rollouts from vLLM itself, on a CPU, through TRL's client; the weights go over a socket in place of NCCL.

DOPD_VLLM_PYTHON names the Python of an environment with vLLM (docs/vllm-and-deepspeed.md says how to make one). It
serves; the trainer runs in this environment. `test_vllm_requests.py` needs no vLLM.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vl.common.files import read_jsonl
from dopd_vl.training.run import load_examples
from dopd_vl.views import View, ViewProcessor, processor_for
from tests.vllm_server import PYTHON, vllm_serving

FOLDER = Path(__file__).parent
STEPS, LENGTH = 3, 6
NEAR = 0.1
"""logits; vLLM's kernels for a CPU stray by hundredths, which decides between tokens that are equally likely"""

pytestmark = pytest.mark.skipif(PYTHON is None, reason="DOPD_VLLM_PYTHON names no Python with vLLM")
TAKES_WEIGHTS = (
    "--worker-extension-cls",
    "vllm_tcp_weights.TcpWeights",
    "--weight-transfer-config",
    '{"backend": "tcp"}',
)


def site_packages() -> str:
    assert PYTHON is not None
    found = subprocess.run([PYTHON, "-c", "import vllm; print(vllm.__path__[0])"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return str(Path(found.stdout.split()[-1]).parent)


def train(world: str, models: Path, data: Path, output: Path, url: str) -> list[dict[str, Any]]:
    """Three steps of the command with greedy rollouts; what the server was asked for and drew, step by step."""
    config = output.parent / "greedy.yaml"
    config.write_text(f"""
output_dir: {output}
model: {{student: {models}/{world}-student, teacher: {models}/{world}-teacher}}
data: {{train: {data}}}
training:
  {{max_steps: {STEPS}, per_device_train_batch_size: 4, num_generations: 2, max_completion_length: {LENGTH},
   warmup_steps: 0, learning_rate: 1.0e-3, save_steps: 1, save_total_limit: {STEPS}, use_vllm: true,
   gradient_checkpointing: false}}
trl: {{top_k: 1, vllm_mode: server, vllm_server_base_url: "{url}"}}
""")
    requests = output.parent / "requests.jsonl"
    command = [sys.executable, FOLDER / "vllm_worker.py", site_packages(), requests, "train", "--config", config]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "VLLM_HOST_IP": "127.0.0.1"}
    environment["PYTHONPATH"] = str(FOLDER.parents[1])
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return read_jsonl(requests)


@torch.no_grad()
def worst_choice(model: Any, views: ViewProcessor, view: View, response: list[int]) -> float:
    """How far a response's tokens stay behind the likeliest ones, in logits; 0: it is the greedy one."""
    inputs = views.collate([view], [response], 0)
    logits = model(**inputs).logits[0, -len(response) - 1 : -1].float()
    chosen = logits.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)
    return float((logits.amax(-1) - chosen).max())


@pytest.mark.parametrize("world", ["text", "vision"])
def test_the_server_rolls_out_with_the_weights_of_the_step_and_sees_plain_prompts(
    world: str, nano_models: Path, vision_data: Path, text_data: Path, tmp_path: Path
) -> None:
    student = nano_models / f"{world}-student"
    data = {"text": text_data, "vision": vision_data}[world]
    with vllm_serving(student, tmp_path / "vllm.log", *TAKES_WEIGHTS) as url:
        steps = train(world, nano_models, data, tmp_path / "run", url)
    assert len(steps) == STEPS
    kind = AutoModelForImageTextToText if world == "vision" else AutoModelForCausalLM
    folders = [student, *(tmp_path / "run" / f"checkpoint-{number}" for number in range(1, STEPS))]
    students = [kind.from_pretrained(folder).eval() for folder in folders]
    views = processor_for(students[0].config, AutoProcessor.from_pretrained(student, padding_side="left"))
    plain = {tuple(view.prompt_ids): view for view in map(views.view, load_examples(str(data)))}
    for number, step in enumerate(steps):
        assert len(step["prompts"]) == len(step["responses"]) == 4
        shown = [plain[tuple(prompt)] for prompt in step["prompts"]]  # nothing but a plain view was ever sent
        behind = [
            [worst_choice(model, views, view, ids) for view, ids in zip(shown, step["responses"], strict=True)]
            for model in students
        ]
        assert max(behind[number]) <= NEAR
        # The weights of the step before would have answered otherwise.
        assert number == 0 or max(behind[number - 1]) > max(behind[number]) + NEAR
