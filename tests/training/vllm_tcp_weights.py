"""Weights over TCP instead of NCCL, the server's side: so vLLM on a CPU takes a trainer's weights. For tests alone.

NCCL joins GPUs and nothing else. vLLM's own `StatelessProcessGroup` broadcasts over a socket wherever it runs, so it
takes the place of the NCCL communicator; endpoints and the reloading of weights layer by layer stay vLLM's.

    vllm serve ... --worker-extension-cls vllm_tcp_weights.TcpWeights --weight-transfer-config '{"backend": "tcp"}'
"""

from typing import Any

import torch
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine


class TcpWeights:
    """Adds nothing to vLLM's worker; that the worker imports this module is what it is named for."""


class TcpWeightTransferEngine(NCCLWeightTransferEngine):
    """vLLM's NCCL engine with another communicator."""

    def init_transfer_engine(self, init_info: Any) -> None:
        self.group = StatelessProcessGroup.create(
            host=init_info.master_address,
            port=init_info.master_port,
            rank=self.parallel_config.rank + init_info.rank_offset,
            world_size=init_info.world_size,
        )

    def receive_weights(self, update_info: Any) -> None:
        for name, shape in zip(update_info.names, update_info.shapes, strict=True):
            tensor = self.group.broadcast(torch.empty(0), src=0)
            assert list(tensor.shape) == list(shape), name
            self.model.load_weights([(name, tensor)])


WeightTransferEngineFactory.register_engine("tcp", TcpWeightTransferEngine)
