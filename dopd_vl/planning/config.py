"""The keys of `dopd-vl plan`: those of a training run, and those of the machine that is to run it."""

from dataclasses import dataclass
from typing import Literal

from dopd_vl.common.configuration import check_at_least, check_shares
from dopd_vl.train_config import TrainConfig


@dataclass
class PlanConfig(TrainConfig):
    """Whether a training run fits, what a step of it takes, and what to change if it does not fit."""

    gpus: str = "1x80"
    """number of GPUs and memory of each in GB (1e9 bytes), e.g. 8x80"""
    gpu: str = "h100"
    """a name in data/gpus.yaml, for throughput and bandwidth"""
    parallel: Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"] = "auto"
    """as the files in configs/accelerate; "auto": single for one GPU, ddp for several"""
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
    """longest privileged prompt; default: data.max_prompt_length, or 1024"""
    images: int = 1
    """of a prompt, for a vision-language student"""
    image_tokens: int | None = None
    """of an image, part of the prompt's tokens; default: what data.max_image_pixels come to, or 1024"""
    mean_share: float = 0.5
    """assumed length of an average prompt and response, of the longest"""
    full_share: float = 0.5
    """assumed share of tokens taught over the whole vocabulary, where an objective does not so teach all (DOPD's HT)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "prompt_tokens", "privileged_tokens", "image_tokens")
        check_at_least(0, self, "images")
        check_shares(self, "mfu", "mbu", "mean_share", "full_share")
