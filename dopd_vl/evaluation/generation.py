"""What drawing needs beyond transformers: a presence penalty, and batches that are the same whenever drawn."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import LogitsProcessor


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
