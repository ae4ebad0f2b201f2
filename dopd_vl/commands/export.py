"""`dopd-vl export`: a student as one model for others to use, its adapters merged, in bf16."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.terminal import Terminal, tell


@dataclass
class ExportConfig:
    """Write a student as one model in safetensors, adapters merged, with its tokenizer, processor and card.

    See docs/hub.md.
    """

    model: str = ""
    """The folder of the student, e.g. runs/train/student or runs/train/best."""
    output: str = ""
    """The folder to write, which must not be there yet. By default it is MODEL-DTYPE beside the student."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The type of the weights that are written."""
    trust_remote_code: bool = False
    """Run Python code that a model folder brings along."""


def main(argv: Sequence[str]) -> int:
    config = read_config(ExportConfig, argv, "dopd-vl export")
    if not config.model:
        raise ConfigurationError("model: no student given; a run leaves one in its folder, as student/")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.run_folder.export import export_student

    quiet_libraries()
    source = Path(config.model)
    output = Path(config.output) if config.output else source.with_name(f"{source.name}-{config.dtype}")
    export_student(source, output, config.dtype, config.trust_remote_code)
    tell(Terminal(), f"exported: {output}")
    return 0
