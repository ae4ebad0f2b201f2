"""The keys of `dopd-vl plan`: those of the machine that is to run it, and those of the training run."""

from dataclasses import dataclass
from typing import Literal

from dopd_vl.common.configuration import check_at_least, check_shares
from dopd_vl.train_config import TrainConfig


@dataclass
class MachineSettings:
    """What a training configuration does not say: the machine, and what is assumed of the data and of the speed."""

    gpus: str = "1xh100"
    """number of GPUs, and a name in data/gpus.yaml or GB (1e9 bytes) of memory of each, e.g. 8xh100 or 8x80"""
    parallel: Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"] = "auto"
    """as the files in configs/accelerate; "auto": single for one GPU, ddp for several"""
    machines: int = 1
    """that the GPUs are spread over"""
    host_memory: float | None = None
    """GB of main memory of a machine, to compare with"""
    disk: float | None = None
    """GB that are free for output_dir, to compare with"""
    gpu: str | None = None
    """a name in data/gpus.yaml, for throughput and bandwidth; default: the one in gpus, or h100"""
    tflops: float | None = None
    """dense bf16 throughput of a GPU; default: the GPU's data sheet"""
    bandwidth: float | None = None
    """TB/s of a GPU's memory; default: the GPU's data sheet"""
    mfu: float = 0.35
    """assumed share of the throughput that scoring and learning reach"""
    mbu: float = 0.5
    """assumed share of the bandwidth that rollouts reach"""
    prompt_tokens: int | None = None
    """longest plain prompt; default: data.max_prompt_length, or 1024"""
    privileged_tokens: int | None = None
    """longest privileged prompt, its images as the student sees them; default: data.max_prompt_length, or 1024"""
    images: int = 1
    """of a prompt, for a vision-language student"""
    image_tokens: int | None = None
    """of an image, part of the prompt's tokens; default: what data.max_pixels comes to, or 1024"""
    mean_share: float = 0.5
    """assumed length of an average prompt and response, of the longest"""
    full_share: float = 0.5
    """assumed share of tokens taught over the whole vocabulary, where an objective does not so teach all (DOPD's HT)"""


@dataclass
class PlanConfig(TrainConfig, MachineSettings):
    """Whether a training run fits, what a step of it takes, and what to change if it does not fit."""

    # A base's fields come the earlier the later it is named: the machine's keys stand first in the help.

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "machines", "prompt_tokens", "privileged_tokens", "image_tokens")
        check_at_least(0, self, "images", "host_memory", "disk")
        check_shares(self, "mfu", "mbu", "mean_share", "full_share")
