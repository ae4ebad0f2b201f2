"""`dopd-vl` on a CPU under DeepSpeed; started by accelerate launch. Its arguments are the command's.

Accelerate leaves DeepSpeed out wherever it is told to use a CPU; DeepSpeed itself runs on one (DS_ACCELERATOR=cpu,
gloo). That choice of accelerate's is all that is replaced here.
"""

import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from dopd_vl import DopdConfig
from dopd_vl.cli import main


def allow_deepspeed_on_a_cpu() -> None:
    def gloo(self: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    finish = DopdConfig.__post_init__

    def finish_without_use_cpu(self: DopdConfig) -> None:
        self.use_cpu = False
        finish(self)

    PartialState._prepare_backend = gloo  # type: ignore[method-assign]
    DopdConfig.__post_init__ = finish_without_use_cpu  # type: ignore[method-assign]


if __name__ == "__main__":
    allow_deepspeed_on_a_cpu()
    sys.exit(main())
