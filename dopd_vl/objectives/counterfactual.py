"""Counterfactual evidence (VAD, arXiv 2607.28590): how much of what the teacher says is owed to the evidence.

The teacher is scored twice on the same rollout, with the evidence (log-probability q_with of the sampled token) and
without it (q_without). Where the evidence raises the token, the teacher speaks from it; elsewhere from habit.

    g_n = clamp(q_with - q_without, 0, limit)        w_n = g_n / mean(g) over the batch's response tokens
"""

from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR


def evidence_weight(with_logp: Tensor, without_logp: Tensor, response_mask: Tensor, limit: float) -> Tensor:
    """w of each token, `[B, N]`, mean 1 over the response tokens, zero where masked.

    Evidence that raises no token of the batch weighs nothing: all zero. The limit keeps one token, impossible without
    the evidence, from taking the whole weight of the batch. Where the paper is silent, both are our choice.
    """
    gain = (with_logp.clamp(min=LOG_PROB_FLOOR) - without_logp.clamp(min=LOG_PROB_FLOOR)).clamp(0.0, limit)
    gain = gain.masked_fill(~response_mask, 0.0)
    total = gain.sum()
    return gain * (response_mask.sum() / total) if total > 0 else gain
