"""What a step logs beyond TRL's own metrics."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dopd_vl.evaluation.verifiers import VERIFIERS, Verdict, judge
from dopd_vl.objectives import Decision, Scores


class TokenSums:
    """Sums over response tokens between two logs, as one vector that ranks can add up.

    They stay on the device until they are asked for: the host waits for it once a log.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = defaultdict(float)

    def add_loss(self, token_loss: Tensor, mask: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Add one slice: `token_loss`, `mask` and every part `[B, N]`."""
        self._sums["tokens"] += mask.sum().double()
        self._sums["loss"] += token_loss.sum().double()
        for name, part in parts.items():
            self._sums[f"tokens/{name}"] += part.sum().double()
            self._sums[f"loss/{name}"] += token_loss.where(part, 0.0).sum().double()

    def add(self, name: str, total: float | Tensor, tokens: int | Tensor) -> None:
        """Add to a quantity whose mean over the tokens (or rollouts) that have it is logged as `name`."""
        self._sums[f"mean/{name}"] += total
        self._sums[f"count/{name}"] += tokens

    def vector(self) -> tuple[list[str], list[float]]:
        """Names (the same on every rank that saw the same parts) and sums."""
        names = sorted(self._sums)
        on_device = [name for name in names if isinstance(self._sums[name], Tensor)]
        if on_device:
            found = torch.stack([self._sums[name].double() for name in on_device]).tolist()
            self._sums.update(zip(on_device, found, strict=True))
        return names, [float(self._sums[name]) for name in names]

    def clear(self) -> None:
        self._sums.clear()


def token_metrics(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Shares of tokens and of loss per part, and means per token, from summed `TokenSums`."""
    total = dict(zip(names, sums, strict=True))
    tokens, loss = total.get("tokens", 0.0), total.get("loss", 0.0)
    metrics: dict[str, float] = {}
    for name, value in total.items():
        kind, _, part = name.partition("/")
        if not part:
            continue
        if kind == "tokens":
            metrics[f"token_share/{part}"] = value / tokens if tokens else 0.0
        elif kind == "loss":
            metrics[f"loss_share/{part}"] = value / loss if loss else 0.0
        elif kind == "mean" and total[f"count/{part}"]:
            metrics[part] = value / total[f"count/{part}"]
    if tokens:
        metrics["token_loss"] = loss / tokens
    return metrics


def verdict_on(response: str, example: Mapping[str, Any]) -> Verdict:
    """The verdict of the example's verifier; not scored where its task has none."""
    verifier = VERIFIERS.get(str(example.get("task")))
    return Verdict(None) if verifier is None else judge(verifier, response, str(example["answer"]))


def add_rollouts(
    sums: TokenSums,
    scores: Scores,
    decision: Decision,
    correct: Sequence[bool | None],
    top_k: int,
    scored: Tensor,
) -> None:
    """Add one generation batch: what the objective tells of its tokens, how sure each policy is, who was right.

    `scored`: the tokens that the policies' scores are of, bool `[B, N]`.
    """
    mask = scores.response_mask
    tokens = mask.sum()
    for name, values in decision.per_token.items():
        if values.is_floating_point():
            sums.add(f"{name}/mean", values.where(mask, 0.0).sum(), tokens)
    of_policies = scored.sum()
    for source, policy in scores.policies.items():
        sums.add(f"entropy/{source}", policy.entropy.sum(), of_policies)
        entries = policy.top_k_logp[..., :top_k]  # of a served teacher there may be fewer
        sums.add(f"top_{entries.shape[-1]}_mass/{source}", entries.exp().sum(), of_policies)
    takes_part = mask.any(dim=-1).tolist()
    judged = [verdict for verdict, use in zip(correct, takes_part, strict=True) if use and verdict is not None]
    sums.add("rollout_accuracy", sum(judged), len(judged))


def add_teachers(
    sums: TokenSums, parts: Mapping[str, Tensor], scores: Scores, correct: Sequence[bool | None], scored: Tensor
) -> None:
    """Add what each of several teachers makes of its rollouts: its log-probability of their tokens, and who was right.

    Args:
        parts: its policy -> its tokens, bool `[B, N]`.
        scored: the tokens that scores are of, bool `[B, N]`.
    """
    logp = next(scored.logp for source, scored in scores.policies.items() if source.policy == "teacher")
    for name, tokens in parts.items():
        sums.add(f"logp/{name}", logp.where(tokens & scored, 0.0).sum(), (tokens & scored).sum())
        judged = [
            right for right, own in zip(correct, tokens.any(-1).tolist(), strict=True) if own and right is not None
        ]
        sums.add(f"rollout_accuracy/{name}", sum(judged), len(judged))
