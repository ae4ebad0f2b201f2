"""Batches for the tests of `dopd_loss`: four tokens worked out by hand, and random ones."""

from math import log
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dopd_vl.core.divergences import TAILS, TOP_K_SOURCES
from dopd_vl.core.routing import THRESHOLD_SCOPES
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import DopdOutput, dopd_loss

LH, LL, HT, HS, MASKED = 0, 1, 2, 3, -1
INF, NAN = float("inf"), float("nan")

# Four tokens on three entries, one for each regime; the sampled token is always entry 0, K is 1.
#        S (learns)         T privileged       P privileged student
TOKENS = {
    LH: ((1 / 2, 1 / 4, 1 / 4), (4 / 5, 1 / 10, 1 / 10), (2 / 3, 1 / 6, 1 / 6)),
    LL: ((1 / 4, 1 / 4, 1 / 2), (1 / 5, 3 / 5, 1 / 5), (1 / 4, 1 / 2, 1 / 4)),
    HT: ((1 / 4, 5 / 8, 1 / 8), (3 / 4, 1 / 8, 1 / 8), (1 / 8, 3 / 4, 1 / 8)),
    HS: ((1 / 3, 1 / 3, 1 / 3), (1 / 6, 2 / 3, 1 / 6), (2 / 3, 1 / 6, 1 / 6)),
}
# A = ln 6/5, ln 5/4, ln 6, ln 4.  q_T = 4/5, 1/5, 3/4, 1/6.  q_S = 2/3, 1/4, 1/8, 2/3.
# No trim:  mean A = ln(36)/4 = .896; mean q_T + mean q_S = 23/48 + 41/96 = 29/32 = .906
# Trim .05: the cut stands at index .95 * 3 = 2.85, above ln 4 and below ln 6, so the HT token leaves the means:
#           mean A = ln(6)/3 = .597; means 7/18 + 19/36 = 11/12 = .917. The regimes are the same.
#   LH: ln 6/5 = .182 below, 4/5 + 2/3 = 1.467 above;  LL: ln 5/4 = .223 below, 9/20 below;
#   HT: ln 6 above, 3/4 >= 1/8;                        HS: ln 4 above, 1/6 < 2/3.
# Losses, with K = 1 and the rest in a bucket:
#   LH: KL(S||T) over entry 0 | rest: S 1/2 | 1/2, T 4/5 | 1/5:  1/2 ln 5/8 + 1/2 ln 5/2 = ln 5/4
#   LL: KL(S||P) over entry 1 | rest: S 1/4 | 3/4, P 1/2 | 1/2:  1/4 ln 1/2 + 3/4 ln 3/2
#   HT: JS over all three, M = (1/2, 3/8, 1/8):  1/2 (3/4 ln 3/2 + 1/8 ln 1/3) + 1/2 (1/4 ln 1/2 + 5/8 ln 5/3)
#   HS: KL(S||P) over entry 0 | rest: S 1/3 | 2/3, P 2/3 | 1/3:  1/3 ln 1/2 + 2/3 ln 2 = 1/3 ln 2
DIVERGENCES_BY_HAND = {
    LH: log(5 / 4),
    LL: log(1 / 2) / 4 + 3 * log(3 / 2) / 4,
    HT: (3 / 4 * log(3 / 2) + 1 / 8 * log(1 / 3)) / 2 + (1 / 4 * log(1 / 2) + 5 / 8 * log(5 / 3)) / 2,
    HS: log(2) / 3,
}


def tokens_by_hand(layout: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits `[B, N, 3]` of the tokens of `TOKENS` in this layout; MASKED positions hold zeros."""
    policies = [
        torch.tensor(
            [[TOKENS[r][p] if r >= 0 else (1, 1, 1) for r in row] for row in layout], dtype=torch.float64
        ).log()
        for p in range(3)
    ]
    regimes = torch.tensor(layout)
    return *policies, torch.zeros_like(regimes), regimes != MASKED


@st.composite
def batches(draw: st.DrawFn, dtype: torch.dtype = torch.float64, least: int = 0) -> list[Tensor]:
    """Logits of the three policies, ids and mask: random shapes, sharpness and lengths, holes in the mask included."""
    B, N, V = draw(st.integers(least, 3)), draw(st.integers(least, 6)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([0.3, 2.0, 6.0]))
    shared = torch.randn(B, N, V, generator=generator, dtype=torch.float64) * scale
    policies = [shared + torch.randn(B, N, V, generator=generator, dtype=torch.float64) * scale for _ in range(3)]
    ids = torch.randint(V, (B, N), generator=generator)
    mask = torch.rand(B, N, generator=generator) < draw(st.sampled_from([0.0, 0.4, 0.8, 1.0]))
    return [*(logits.to(dtype) for logits in policies), ids, mask]


@st.composite
def all_settings(draw: st.DrawFn, vocabulary: int) -> dict[str, Any]:
    return {
        "beta_light": draw(st.sampled_from([0.0, 0.6, 1.7])),
        "beta_weak": draw(st.sampled_from([0.0, 0.3, 2.0])),
        "top_k": draw(st.integers(1, vocabulary)),
        "trim_fraction": draw(st.sampled_from([0.0, 0.05, 0.25, 0.5])),
        "threshold_scope": draw(st.sampled_from(THRESHOLD_SCOPES)),
        "top_k_source": draw(st.sampled_from(TOP_K_SOURCES)),
        "tail": draw(st.sampled_from(TAILS)),
    }


def loss_and_gradient(batch: list[Tensor], settings: DopdSettings) -> tuple[DopdOutput, Tensor]:
    student = batch[0].clone().requires_grad_()
    out = dopd_loss(student, *batch[1:], settings)
    out.loss.backward()
    return out, student.grad
