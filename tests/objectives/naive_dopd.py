"""DOPD once more, from the paper's equations, in NumPy and loops: slow, and sharing no line with dopd_vl.core.

`dopd_loss` is pinned to this. It is written token by token, on probabilities, not logits, so that a silent change
of the routing (which tokens the means leave out, which side a tie falls on), of the supervision (which policy, which
divergence, whose K tokens, what becomes of the rest) or of the average (sequences, not tokens) shows.
"""

from typing import NamedTuple

import numpy as np

LH, LL, HT, HS, MASKED = 0, 1, 2, 3, -1


class NaiveDopd(NamedTuple):
    loss: float
    token_loss: np.ndarray
    regime: np.ndarray
    gap: np.ndarray
    thresholds: np.ndarray
    """`[B, 3]`: mean gap, mean q_T, mean q_S that each sequence is held against"""


def naive_dopd(
    student_logits: np.ndarray,
    teacher_logits: np.ndarray,
    privileged_student_logits: np.ndarray,
    ids: np.ndarray,
    mask: np.ndarray,
    beta_light: float = 0.6,
    beta_weak: float = 0.3,
    top_k: int = 128,
    trim_fraction: float = 0.05,
    threshold_scope: str = "global",
    top_k_source: str = "target",
    tail: str = "bucket",
) -> NaiveDopd:
    B, N = ids.shape
    tokens = [(b, n) for b in range(B) for n in range(N) if mask[b, n]]
    gap = np.zeros((B, N))
    q_T, q_S = np.zeros((B, N)), np.zeros((B, N))
    for b, n in tokens:
        q_T[b, n] = softmax(teacher_logits[b, n])[ids[b, n]]
        q_S[b, n] = softmax(privileged_student_logits[b, n])[ids[b, n]]
        gap[b, n] = abs(np.log(q_T[b, n]) - np.log(q_S[b, n]))

    thresholds = np.zeros((B, 3))
    for b in range(B):
        among = [t for t in tokens if threshold_scope != "sequence" or t[0] == b]
        if among:
            cut = np.percentile([gap[t] for t in among], 100 * (1 - trim_fraction))
            kept = [t for t in among if gap[t] <= cut]
            thresholds[b] = [np.mean([column[t] for t in kept]) for column in (gap, q_T, q_S)]

    regime = np.full((B, N), MASKED)
    token_loss = np.zeros((B, N))
    for b, n in tokens:
        mean_gap, mean_q_T, mean_q_S = thresholds[b]
        if gap[b, n] < mean_gap:
            regime[b, n] = LH if q_T[b, n] + q_S[b, n] >= mean_q_T + mean_q_S else LL
        else:
            regime[b, n] = HT if q_T[b, n] >= q_S[b, n] else HS
        S = softmax(student_logits[b, n])
        T = softmax(teacher_logits[b, n])
        P = softmax(privileged_student_logits[b, n])
        if regime[b, n] == LH:
            token_loss[b, n] = beta_light * top_k_reverse_kl(S, T, top_k, top_k_source, tail)
        if regime[b, n] == LL:
            token_loss[b, n] = beta_weak * top_k_reverse_kl(S, P, top_k, top_k_source, tail)
        if regime[b, n] == HT:
            M = (S + T) / 2
            token_loss[b, n] = 0.5 * np.sum(T * np.log(T / M)) + 0.5 * np.sum(S * np.log(S / M))
        if regime[b, n] == HS:
            token_loss[b, n] = beta_light * top_k_reverse_kl(S, P, top_k, top_k_source, tail)

    lengths = [int(np.sum(mask[b] != 0)) for b in range(B)]
    sequence_losses = [token_loss[b].sum() / lengths[b] for b in range(B) if lengths[b]]
    loss = float(np.mean(sequence_losses)) if sequence_losses else 0.0
    return NaiveDopd(loss, token_loss, regime, gap, thresholds)


def top_k_reverse_kl(S: np.ndarray, target: np.ndarray, k: int, source: str, tail: str) -> float:
    likeliest = {"target": [target], "student": [S], "union": [S, target]}[source]
    chosen = {int(v) for policy in likeliest for v in np.argsort(-policy)[:k]}
    s, t = [S[v] for v in chosen], [target[v] for v in chosen]
    if tail == "renormalize":
        s, t = [x / sum(s) for x in s], [x / sum(t) for x in t]
    if tail == "bucket" and len(chosen) < len(S):
        rest = [v for v in range(len(S)) if v not in chosen]
        s, t = [*s, sum(S[v] for v in rest)], [*t, sum(target[v] for v in rest)]
    return float(sum(a * np.log(a / b) for a, b in zip(s, t, strict=True)))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
