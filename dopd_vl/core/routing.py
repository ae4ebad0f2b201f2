"""DOPD's routing (arXiv 2606.30626): per token, the advantage gap, its thresholds, and the regime that follows.

    A_n = | l_T - l_S |                                        the advantage gap (Eq. 1), sampled token, both privileged
    low gap:   A <  mean(A)    LH if q_T + q_S >= mean(q_T) + mean(q_S), else LL
    high gap:  A >= mean(A)    HT if q_T >= q_S, else HS

l_T, l_S are log-probabilities of the sampled token under the privileged teacher and the privileged student, q_T and q_S
their exponentials. Nothing here carries a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from dopd_vl.core.divergences import LOG_PROB_FLOOR

ThresholdScope = Literal["global", "rank", "sequence"]
THRESHOLD_SCOPES: tuple[str, ...] = get_args(ThresholdScope)


class Regime(IntEnum):
    """What a token is, by its gap. The values are the codes in every `regime[B, N]` tensor."""

    MASKED = -1
    LH = 0
    """low gap, high probability: both policies agree and are sure"""
    LL = 1
    """low gap, low probability: both agree and are unsure"""
    HT = 2
    """high gap, the teacher gives the token more"""
    HS = 3
    """high gap, the student gives the token more"""


REGIMES = (Regime.LH, Regime.LL, Regime.HT, Regime.HS)


@dataclass(frozen=True)
class Thresholds:
    """Trimmed means that separate the regimes. Scalars, or `[B, 1]` when each sequence has its own."""

    gap: Tensor
    """mean of A, nats"""
    teacher_prob: Tensor
    """mean of q_T"""
    student_prob: Tensor
    """mean of q_S"""


def advantage_gap(teacher_logp: Tensor, privileged_student_logp: Tensor) -> Tensor:
    """`A = |l_T - l_S|` in nats (Eq. 1). Log-probabilities are floored first, so that two impossibles have no gap."""
    gap = teacher_logp.clamp(min=LOG_PROB_FLOOR) - privileged_student_logp.clamp(min=LOG_PROB_FLOOR)
    return gap.abs().detach()


def compute_thresholds(
    teacher_logp: Tensor,
    privileged_student_logp: Tensor,
    response_mask: Tensor,
    trim_fraction: float = 0.05,
    scope: ThresholdScope = "global",
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Thresholds:
    """Means of A, q_T and q_S over the response tokens, without the tokens whose A is an outlier.

    Args:
        teacher_logp: `[B, N]`, log-probability of the sampled token under the privileged teacher.
        privileged_student_logp: `[B, N]`, the same under the privileged student.
        response_mask: `[B, N]`, true where there is a response token.
        trim_fraction: share of the tokens, those of largest A, that all three means leave out. They are still trained
            on. Which tokens the paper trims is not said; this is the documented default.
        scope: "global": all tokens of the call over all ranks, so call it with the whole optimizer-step batch; "rank":
            all tokens of this rank; "sequence": each sequence its own.
        gather: joins a `[tokens, 3]` tensor over ranks, for scope "global". Default: `torch.distributed` where it is
            initialised, else the identity.

    A batch (or sequence) without response tokens has thresholds of zero.
    """
    if scope not in THRESHOLD_SCOPES:
        raise ValueError(f"unknown threshold_scope {scope!r}, expected one of {', '.join(THRESHOLD_SCOPES)}")
    if not 0.0 <= trim_fraction < 1.0:
        raise ValueError(f"trim_fraction={trim_fraction} must be at least 0 and below 1")
    mask = response_mask.bool()
    # float64: with equal gaps everywhere, the mean must equal them, or ties would fall on either side by rounding.
    values = torch.stack(
        [
            advantage_gap(teacher_logp, privileged_student_logp),
            teacher_logp.detach().exp(),
            privileged_student_logp.detach().exp(),
        ],
        dim=-1,
    ).double()
    if scope == "sequence":
        per_sequence = [
            trimmed_means(values_N3[mask_N], trim_fraction) for values_N3, mask_N in zip(values, mask, strict=True)
        ]
        means = torch.stack(per_sequence).unsqueeze(1) if per_sequence else values.new_zeros(0, 1, 3)
    else:
        tokens = values[mask]
        if scope == "global":
            tokens = (gather or gather_over_ranks)(tokens)
        means = trimmed_means(tokens, trim_fraction)
    return Thresholds(gap=means[..., 0], teacher_prob=means[..., 1], student_prob=means[..., 2])


def trimmed_means(values: Tensor, trim_fraction: float) -> Tensor:
    """Column means of `[tokens, 3]`, of the rows whose first column is at most its `1 - trim_fraction` quantile."""
    if values.shape[0] == 0:
        return values.new_zeros(3)
    if trim_fraction > 0.0:
        gap = values[:, 0]
        values = values[gap <= _quantile(gap, 1.0 - trim_fraction)]
        if values.shape[0] == 0:  # of a policy that diverged: its gaps are NaN
            return values.new_full((3,), torch.nan)
    # The mean of equal values is that value: clamped, since rounding may put it an ulp above, and turn all ties round.
    return values.mean(dim=0).clamp(values.amin(dim=0), values.amax(dim=0))


def route(
    teacher_logp: Tensor, privileged_student_logp: Tensor, response_mask: Tensor, thresholds: Thresholds
) -> Tensor:
    """Regime of each token, `[B, N]` int64: 0 LH, 1 LL, 2 HT, 3 HS, -1 where masked. Every token gets exactly one."""
    gap = advantage_gap(teacher_logp, privileged_student_logp).double()
    q_T = teacher_logp.detach().exp().double()
    q_S = privileged_student_logp.detach().exp().double()
    low_gap = gap < thresholds.gap
    likely = q_T + q_S >= thresholds.teacher_prob + thresholds.student_prob
    low = torch.where(likely, int(Regime.LH), int(Regime.LL))
    high = torch.where(q_T >= q_S, int(Regime.HT), int(Regime.HS))
    return torch.where(response_mask.bool(), torch.where(low_gap, low, high), int(Regime.MASKED))


def gather_over_ranks(tokens: Tensor) -> Tensor:
    """Concatenate `[tokens, C]` of differing length over all ranks; the identity where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tokens
    world_size = dist.get_world_size()
    count = torch.tensor([tokens.shape[0]], device=tokens.device)
    counts = [torch.zeros_like(count) for _ in range(world_size)]
    dist.all_gather(counts, count)
    longest = int(max(c.item() for c in counts))
    padded = tokens.new_zeros(longest, *tokens.shape[1:])
    padded[: tokens.shape[0]] = tokens
    gathered = [torch.zeros_like(padded) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[: int(c.item())] for rows, c in zip(gathered, counts, strict=True)])


def _quantile(values: Tensor, q: float) -> Tensor:
    # torch.quantile refuses more than 2^24 elements; this is the same linear interpolation without the limit.
    ordered = values.sort().values
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
