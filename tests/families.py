"""Newer families at nano size: the real classes, in the shapes of the nano models and with their processor."""

import json
import shutil
from pathlib import Path
from typing import Any

# Router logits as of a model that was trained with a balancing loss.
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "output_router_logits": True}
DELTA = {
    "full_attention_interval": 2,  # a recurrent layer, one that attends, and so on
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
SHARED = {**MOE, "shared_expert_intermediate_size": 32}
VISION: dict[str, dict[str, Any]] = {"qwen3_vl_moe": MOE, "qwen3_5": DELTA, "qwen3_5_moe": {**DELTA, **SHARED}}
TEXT: dict[str, dict[str, Any]] = {"qwen3_5_text": DELTA, "qwen3_5_moe_text": {**DELTA, **SHARED}}
"""Model type -> what its language model has beside a Qwen3's."""
RECURRENT = [family for family in (*VISION, *TEXT) if family.startswith("qwen3_5")]


def make_family(family: str, nano: Path, folder: Path) -> None:
    """Untrained student and teacher of a family in `folder`, named as those in `nano` that they are shaped by."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    world = "vision" if family in VISION else "text"
    for name in (f"{world}-student", f"{world}-teacher"):
        shutil.copytree(nano / name, folder / name)
        described = json.loads((folder / name / "config.json").read_text())
        for key in ("architectures", "model_type", "transformers_version"):
            del described[key]
        if world == "vision":
            text, tower = described["text_config"], described["vision_config"]
            del text["model_type"], tower["model_type"]
            text |= VISION[family]
        else:
            text, tower = described, {}
            text |= TEXT[family]
        if family in RECURRENT:
            for key in ("layer_types", "max_window_layers", "sliding_window", "use_sliding_window"):
                text.pop(key, None)
            tower.pop("deepstack_visual_indexes", None)
            # A part of each head is rotated: 8 frequency pairs of a 32-wide one.
            text["rope_parameters"] |= {"partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
        torch.manual_seed(1)
        kind = AutoModelForImageTextToText if world == "vision" else AutoModelForCausalLM
        model = kind.from_config(AutoConfig.for_model(family, **described))
        model.generation_config = GenerationConfig.from_pretrained(folder / name)
        model.save_pretrained(folder / name)
