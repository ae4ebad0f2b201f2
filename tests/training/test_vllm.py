"""Rollouts from vLLM itself, on a CPU, through TRL's client; the weights go over a socket in place of NCCL.

DOPD_VLLM_PYTHON names the Python of an environment with vLLM (docs/vllm-and-deepspeed.md says how to make one). It
serves; the trainer runs in this environment. `test_vllm_requests.py` needs no vLLM.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from dopd_vl.common.files import read_jsonl
from dopd_vl.training.run import load_examples
from dopd_vl.views import View, ViewProcessor, processor_for

PYTHON = os.environ.get("DOPD_VLLM_PYTHON")
FOLDER = Path(__file__).parent
STEPS, LENGTH = 3, 6
NEAR = 0.1
"""logits; vLLM's kernels for a CPU stray by hundredths, which decides between tokens that are equally likely"""

pytestmark = pytest.mark.skipif(PYTHON is None, reason="DOPD_VLLM_PYTHON names no Python with vLLM")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def vllm_serving(model: Path, log: Path) -> Iterator[str]:
    assert PYTHON is not None
    port = free_port()
    command = [str(Path(PYTHON).parent / "vllm"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16"]
    command += ["--worker-extension-cls", "vllm_tcp_weights.TcpWeights", "--enable-scale-out"]
    command += ["--weight-transfer-config", '{"backend": "tcp"}']
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    settings |= {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"no server after 15 minutes: {log.read_text()[-4000:]}")


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
    with vllm_serving(student, tmp_path / "vllm.log") as url:
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
