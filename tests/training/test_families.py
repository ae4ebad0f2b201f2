"""A response has the same hidden states alone, padded among others, and going on from its prompt's keys and values."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dopd_vl.models import backbone_of
from dopd_vl.training.prompt_sharing import can_go_on, hidden_states_from_shared_prompts
from dopd_vl.views.rollouts import pad_responses
from tests.families import RECURRENT, TEXT

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Windows of eight tokens are shorter than a prompt and its response.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "num_hidden_layers": 6},
    "phi3": {},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 8},
    **TEXT,
}
PROMPTS, RESPONSES, ROWS = (13, 5), [[7, 8, 9, 10], [5, 6], [6, 6, 7]], [0, 0, 1]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_sharing_change_no_hidden_state(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
    backbone = backbone_of(AutoModelForCausalLM.from_config(config).eval())
    assert can_go_on(config) == (family not in RECURRENT)
    prompts = [torch.randint(3, 60, (length,)) for length in PROMPTS]
    longest = max(PROMPTS)
    padded = torch.stack([torch.nn.functional.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
    seen = torch.arange(longest)[None] >= longest - torch.tensor(PROMPTS)[:, None]
    rows = torch.tensor(ROWS)
    ids, mask = pad_responses(RESPONSES, 0)

    whole = {"input_ids": torch.cat([padded[rows], ids], 1), "attention_mask": torch.cat([seen[rows], mask], 1).long()}
    together = backbone(**whole, use_cache=False).last_hidden_state[:, -ids.shape[1] - 1 : -1]
    ways = [together]
    if can_go_on(config):
        read = {"input_ids": padded, "attention_mask": seen.long()}
        ways.append(hidden_states_from_shared_prompts(backbone, read, rows, ids, mask))
    for number, response in enumerate(RESPONSES):
        prompt = prompts[ROWS[number]]
        alone = backbone(input_ids=torch.cat([prompt, torch.tensor(response)])[None], use_cache=False)
        expected = alone.last_hidden_state[0, len(prompt) - 1 : -1]
        for found in ways:
            torch.testing.assert_close(found[number, : len(response)], expected, atol=1e-5, rtol=1e-4)
