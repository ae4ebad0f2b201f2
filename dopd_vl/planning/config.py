"""The keys of `dopd-vl plan`: those of the machine that is to run it, and those of the training run."""

from dataclasses import dataclass
from typing import Literal

from dopd_vl.common.configuration import check_at_least, check_shares
from dopd_vl.train_config import TrainConfig


@dataclass
class MachineSettings:
    """What a training configuration does not say: the machine, and what is assumed of the data and of the speed."""

    gpus: str = "1xh100"
    """The number of GPUs, and of each a name in data/gpus.yaml or GB (1e9 bytes) of memory, e.g. 8xh100 or 8x80."""
    parallel: Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"] = "auto"
    """How the run is spread over GPUs, as by the files in configs/accelerate; "auto" is single for one GPU and ddp for
    several."""
    machines: int = 1
    """The number of machines that the GPUs are spread over."""
    host_memory: float | None = None
    """The main memory of a machine in GB, to compare with. By default nothing is compared."""
    disk: float | None = None
    """What is free for output_dir in GB, to compare with. By default nothing is compared."""
    gpu: str | None = None
    """A name in data/gpus.yaml, for throughput and bandwidth. By default it is the one in gpus, or h100."""
    tflops: float | None = None
    """The dense bf16 throughput of a GPU in TFLOPS. By default it is that of the GPU's data sheet."""
    bandwidth: float | None = None
    """The bandwidth of a GPU's memory in TB/s. By default it is that of the GPU's data sheet."""
    mfu: float = 0.35
    """The share of the throughput that scoring and learning are assumed to reach."""
    mbu: float = 0.5
    """The share of the bandwidth that rollouts are assumed to reach."""
    prompt_tokens: int | None = None
    """The tokens of the longest plain prompt. By default they are data.max_prompt_length, or 1024."""
    privileged_tokens: int | None = None
    """The tokens of the longest privileged prompt, its images as the student sees them. By default they are
    data.max_prompt_length, or 1024."""
    images: int = 1
    """The number of images in a prompt, for a vision-language student."""
    image_tokens: int | None = None
    """The tokens of an image, which are part of the prompt's. By default they are what data.max_pixels comes to, or
    1024."""
    mean_share: float = 0.5
    """The length of an average prompt and response that is assumed, as a share of the longest."""
    full_share: float = 0.5
    """The share of tokens that is assumed to be taught over the whole vocabulary, where an objective does not so teach
    all (DOPD's HT)."""


@dataclass
class PlanConfig(TrainConfig, MachineSettings):
    """Whether a training run fits, what a step of it takes, and what to change if it does not fit.

    See docs/plan.md.
    """

    # A base's fields come the earlier the later it is named: the machine's keys stand first in the help.

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "machines", "prompt_tokens", "privileged_tokens", "image_tokens")
        check_at_least(0, self, "images", "host_memory", "disk")
        check_shares(self, "mfu", "mbu", "mean_share", "full_share")
