"""Where a benchmark ran."""

import platform
from pathlib import Path

import torch
import transformers
import trl

VERSIONS = {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__}


def describe(device: str, threads: int, precision: str) -> str:
    """E.g. "AMD EPYC, 2 threads, float32"."""
    return f"{_cpu_name() if device == 'cpu' else torch.cuda.get_device_name()}, {threads} threads, {precision}"


def _cpu_name() -> str:
    """As the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
