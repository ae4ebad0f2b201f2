"""Scores from logits or from hand-picked probabilities, and the published losses once more, in NumPy and loops.

The naive losses share no line with `dopd_vl.core`: an objective is pinned to what its paper says, token by token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dopd_vl.core import Projection, Source, execute_plan, reduce, score_tokens
from dopd_vl.core.projection import divergence_of
from dopd_vl.objectives import Decision, Objective, Scores
from dopd_vl.objectives.base import Pair, Requirements

TEACHER = Source("teacher", "plain")
STUDENT = Source("student", "plain")
NAN = float("nan")

NaiveTokenLoss = Callable[[dict[Source, np.ndarray], np.ndarray, np.ndarray, int], float]
"""Probabilities `[B, N, V]` of every source, the student's `[V]`, (b, n), the sampled id -> that token's loss."""


def project(logits: Tensor) -> Projection:
    """A policy whose hidden states are its logits."""
    return Projection(logits, torch.eye(logits.shape[-1], dtype=logits.dtype))


def scores_of(
    logits: Mapping[Source, Tensor],
    response_ids: Tensor,
    response_mask: Tensor,
    group: Sequence[int] | None = None,
    correct: Sequence[float] | None = None,
    has_sibling: Sequence[bool] | None = None,
    pairs: Sequence[Pair] = (),
    lesson: Sequence[int] | None = None,
) -> Scores:
    return Scores(
        policies={s: score_tokens(project(z.detach()), response_ids, response_mask, 4) for s, z in logits.items()},
        response_ids=response_ids,
        response_mask=response_mask,
        group=torch.tensor(list(range(len(response_ids))) if group is None else group),
        correct=None if correct is None else torch.tensor(correct),
        pairs={
            pair: divergence_of(
                pair.divergence,
                project(logits[pair.student].detach()),
                project(logits[pair.target].detach()),
                response_mask,
            )
            for pair in pairs
        },
        has_sibling=None if has_sibling is None else torch.tensor(has_sibling),
        lesson=None if lesson is None else torch.tensor(lesson),
    )


def sampled(probabilities: Mapping[Source, Sequence[Sequence[float]]], mask: Sequence[Sequence[int]], **more) -> Scores:
    """Scores over a vocabulary of two, from the probability of the sampled token, `[B][N]`, in every policy."""
    response_mask = torch.tensor(mask).bool()
    logits = {}
    for source, rows in probabilities.items():
        p = torch.tensor(rows, dtype=torch.float64)
        logits[source] = torch.stack([p, 1 - p], dim=-1).log()
    return scores_of(logits, torch.zeros_like(response_mask, dtype=torch.long), response_mask, **more)


@dataclass
class Batch:
    """Random logits (fp64, all with a gradient), ids, and a mask with a full, a short, a one-token, an empty row."""

    student: Tensor
    logits: dict[Source, Tensor]
    ids: Tensor
    mask: Tensor

    def scores(self, objective: Objective, **more) -> Scores:
        return scores_of(self.logits, self.ids, self.mask, pairs=Requirements.of(objective).pairs, **more)


def random_batch(objective: Objective, seed: int = 0, vocabulary: int = 9) -> Batch:
    """Every source that the objective asks for gets its own logits; the plain student's are the learning student's."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()

    def logits() -> Tensor:
        return 1.5 * torch.randn(*mask.shape, vocabulary, generator=generator, dtype=torch.float64)

    student = logits().requires_grad_()
    sources = {s: (student.detach().clone() if s == STUDENT else logits()) for s in objective.sources()}
    ids = torch.randint(vocabulary, mask.shape, generator=generator)
    return Batch(student, {s: z.requires_grad_() for s, z in sources.items()}, ids, mask)


def check_loss(objective: Objective, naive: NaiveTokenLoss, reduction: str = "sequence", seed: int = 0, **more) -> None:
    """The plan's token losses and their mean are the naive ones, and only the student on x gets a gradient."""
    batch = random_batch(objective, seed)
    decision = objective.decide(batch.scores(objective, **more))
    token_loss = execute_plan(decision.plan, batch.student, batch.logits, batch.ids, batch.mask)

    expected = np.zeros(batch.mask.shape)
    policies = {source: softmax(z.detach().numpy()) for source, z in batch.logits.items()}
    student = softmax(batch.student.detach().numpy())
    tokens = [(b, n) for b, n in np.ndindex(*batch.mask.shape) if batch.mask[b, n]]
    for b, n in tokens:
        here = {source: p[b, n] for source, p in policies.items()}
        expected[b, n] = naive(here, student[b, n], (b, n), int(batch.ids[b, n]))
    np.testing.assert_allclose(token_loss.detach().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert np.abs(expected).sum() > 0

    loss = reduce(token_loss, batch.mask, decision.plan.reduction)
    lengths = batch.mask.sum(-1).tolist()
    if reduction == "token":
        mean = expected.sum() / sum(lengths)
    else:
        mean = np.mean([expected[b].sum() / length for b, length in enumerate(lengths) if length])
    np.testing.assert_allclose(loss.item(), mean, rtol=1e-6)

    loss.backward()
    assert batch.student.grad is not None
    assert batch.student.grad[batch.mask].abs().sum() > 0
    assert batch.student.grad[~batch.mask].abs().sum() == 0
    assert all(z.grad is None for z in batch.logits.values())
    assert not any(term.weight.requires_grad for term in decision.plan.terms)


def check_policy_gradient(objective: Objective, advantage: Tensor, decision: Decision, batch: Batch) -> None:
    """The gradient in the student's logits is `-advantage (1[v = y_n] - S(v))`, at every response token."""
    token_loss = execute_plan(decision.plan, batch.student, batch.logits, batch.ids, batch.mask)
    token_loss.sum().backward()
    assert batch.student.grad is not None
    S = softmax(batch.student.detach().numpy())
    for b, n in np.ndindex(*batch.mask.shape):
        chosen = np.eye(S.shape[-1])[int(batch.ids[b, n])]
        expected = -float(advantage[b, n]) * (chosen - S[b, n]) if batch.mask[b, n] else np.zeros(S.shape[-1])
        np.testing.assert_allclose(batch.student.grad[b, n].numpy(), expected, rtol=1e-6, atol=1e-9)


def nothing_to_learn(objective: Objective, **more) -> Decision:
    """The decision on a batch in which every token is masked; its plan teaches nothing and no number is infinite."""
    batch = random_batch(objective)
    batch.mask = torch.zeros_like(batch.mask)
    decision = objective.decide(batch.scores(objective, **more))
    token_loss = execute_plan(decision.plan, batch.student, batch.logits, batch.ids, batch.mask)
    assert token_loss.abs().sum() == 0
    assert not any(np.isinf(value) for value in decision.values.values())
    assert all(np.isfinite(value) for name, value in decision.values.items() if name != "uni-opd/margin")
    assert all(term.weight.isfinite().all() for term in decision.plan.terms)
    return decision


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def kl(p: Sequence[float] | np.ndarray, q: Sequence[float] | np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def js(p: Sequence[float] | np.ndarray, q: Sequence[float] | np.ndarray) -> float:
    mixture = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return kl(p, mixture) / 2 + kl(q, mixture) / 2


def entropy(p: np.ndarray) -> float:
    return float(-sum(a * np.log(a) for a in p))


def likeliest(p: np.ndarray, k: int) -> list[int]:
    return [int(v) for v in np.argsort(-p)[:k]]


def with_bucket(p: np.ndarray, chosen: Sequence[int]) -> list[float]:
    """The chosen entries of p, and the sum of all others."""
    return [*(float(p[v]) for v in chosen), float(sum(p[v] for v in range(len(p)) if v not in chosen))]
