"""`dopd-vl` on a CPU with rollouts from a vLLM server; what was asked for and drawn is written to the file REQUESTS.

    python vllm_worker.py SITE_PACKAGES REQUESTS train ...

Two things are replaced: NCCL, by vLLM's own broadcast over a socket (see vllm_tcp_weights.py), and with it the
refusals of a machine without a GPU. Requests, their order and the walk over the student's weights are TRL's.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

NamedTensor = tuple[str, torch.Tensor]


def send_weights_over_tcp() -> None:
    from trl.generation import vllm_client
    from vllm.distributed.utils import StatelessProcessGroup

    join = vllm_client.VLLMClient.init_communicator

    def open_endpoint(info: dict[str, Any]) -> StatelessProcessGroup:
        return StatelessProcessGroup.create(info["master_address"], info["master_port"], 0, info["world_size"])

    def broadcast(
        iterator: Iterator[NamedTensor],
        group: StatelessProcessGroup,
        src: int,
        post_iter_func: Callable[[NamedTensor], torch.Tensor],
    ) -> None:
        for item in iterator:
            group.broadcast(post_iter_func(item).clone(), src=src)

    # TRL refuses a device that is not CUDA's, and does nothing with this one.
    vllm_client.VLLMClient.init_communicator = lambda self, device: join(self, "cuda")
    vllm_client.open_trainer_endpoint = open_endpoint
    vllm_client.VLLMClient.close_communicator = lambda self: None  # it closes NCCL's
    vllm_client.packed_nccl_broadcast_producer = broadcast


def write_requests(file: str) -> None:
    from trl.generation.vllm_client import VLLMClient

    draw = VLLMClient.generate

    def draw_and_write(self: VLLMClient, prompts: list[list[int]], **kwargs: Any) -> dict[str, Any]:
        drawn = draw(self, prompts, **kwargs)
        with open(file, "a", encoding="utf-8") as requests:
            requests.write(json.dumps({"prompts": prompts, "responses": drawn["completion_ids"]}) + "\n")
        return drawn

    VLLMClient.generate = draw_and_write


def main() -> int:
    sys.path.append(sys.argv.pop(1))  # last: what this environment has goes before what vLLM's has
    send_weights_over_tcp()
    write_requests(sys.argv.pop(1))

    from dopd_vl.cli import main
    from dopd_vl.training import checks

    checks.check_device = lambda config: None
    return main()


if __name__ == "__main__":
    sys.exit(main())
