"""What drawing needs beyond transformers: the bare policy, a presence penalty, batches the same whenever drawn."""

import hashlib
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

_ASKED_FOR = {
    *("do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("use_cache", "cache_implementation", "output_attentions", "output_hidden_states", "return_dict_in_generate"),
}
"""Settings of generation that are given with every call, or say nothing of the policy."""


@contextmanager
def bare_policy(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """While it lasts, responses are drawn as the caller says, and by nothing that the model's generation_config adds.

    transformers fills in from there whatever it is not told: penalties, beams, forbidden words.
    """
    owner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = own


def ignored_settings(model: PreTrainedModel) -> str:
    """What `bare_policy` leaves out of a model's own generation_config, for people; empty where there is nothing."""
    assert model.generation_config is not None
    settings = model.generation_config.to_diff_dict()
    return ", ".join(f"{name}={reprlib.repr(value)}" for name, value in settings.items() if name not in _ASKED_FOR)


class PresencePenalty(LogitsProcessor):
    """Takes `penalty` once from the logit of each token that was generated so far; the prompt does not count."""

    def __init__(self, penalty: float, prompt_length: int):
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        present = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, input_ids[:, self.prompt_length :], True)
        return scores - self.penalty * present


@contextmanager
def seeded(device: torch.device, *parts: int) -> Iterator[None]:
    """Draws inside depend on `parts` alone, and those outside are as if nothing had been drawn inside."""
    seed = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
