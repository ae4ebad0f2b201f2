"""DOPD's loss (arXiv 2606.30626) as functions of tensors: on whole logits, and fused with the output heads."""

from typing import NamedTuple

import torch
from torch import Tensor

from dopd_vl.core import Projection, Thresholds, execute_plan, fused_plan_loss, reduce, score_tokens
from dopd_vl.core.divergences import log_softmax, sampled_logp
from dopd_vl.objectives.common import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER
from dopd_vl.objectives.dopd import PUBLISHED, DopdSettings, dopd_plan, route_tokens


class DopdOutput(NamedTuple):
    """The loss and everything that led to it. Only `loss` and `token_loss` carry a gradient."""

    loss: Tensor
    """scalar: mean over sequences of the mean over their tokens"""
    token_loss: Tensor
    """`[B, N]`, weighted, zero where masked"""
    regime: Tensor
    """`[B, N]` int64: 0 LH, 1 LL, 2 HT, 3 HS, -1 masked"""
    gap: Tensor
    """`[B, N]` nats, zero where masked"""
    teacher_logp: Tensor
    """`[B, N]`, log-probability of the sampled token under T(.|x,p), zero where masked"""
    privileged_student_logp: Tensor
    """`[B, N]`, the same under S(.|x,p)"""
    thresholds: Thresholds


def dopd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    privileged_student_logits: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    settings: DopdSettings = PUBLISHED,
) -> DopdOutput:
    """DOPD on whole logits: the reference, and fast enough for small vocabularies.

    Args:
        student_logits: `[B, N, V]` of S(.|x), position n predicts response token n. The only input with a gradient.
        teacher_logits: `[B, N, V]` of T(.|x,p).
        privileged_student_logits: `[B, N, V]` of S(.|x,p).
        response_ids: `[B, N]` int64, the sampled tokens.
        response_mask: `[B, N]`, true where there is a response token. Masked positions may hold anything.

    Raises:
        ValueError: shapes or vocabularies differ, Top-K exceeds the vocabulary, a token id or a logit is out of range.
    """
    given = {
        "student_logits": student_logits,
        "teacher_logits": teacher_logits,
        "privileged_student_logits": privileged_student_logits,
    }
    vocabulary = student_logits.shape[-1]
    check_inputs(given, response_ids, response_mask, vocabulary, settings.top_k)
    for name, logits in given.items():
        if logits.shape[-1] != vocabulary:
            raise ValueError(f"{name} has a vocabulary of {logits.shape[-1]}, student_logits of {vocabulary}")
    mask = response_mask.bool()
    teacher_logp = _response_logp(teacher_logits, response_ids, mask)
    privileged_student_logp = _response_logp(privileged_student_logits, response_ids, mask)
    regime, gap, thresholds = route_tokens(teacher_logp, privileged_student_logp, mask, settings)
    plan = dopd_plan(regime, settings)
    sources = {PRIVILEGED_TEACHER: teacher_logits, PRIVILEGED_STUDENT: privileged_student_logits}
    token_loss = execute_plan(plan, student_logits, sources, response_ids, mask)
    loss = reduce(token_loss, mask, plan.reduction)
    return DopdOutput(loss, token_loss, regime, gap, teacher_logp, privileged_student_logp, thresholds)


def fused_dopd_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    privileged_student_hidden: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    settings: DopdSettings = PUBLISHED,
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
) -> DopdOutput:
    """`dopd_loss` from hidden states `[B, N, H]` and heads `[V, H]`; the privileged student shares the student's head.

    Differentiable in `student_hidden` and `student_head` alone.

    Args:
        chunk_size: tokens projected at a time; default: by device, `chunk_size_for`.
        dtype: what hidden states and heads are rounded to for their products, e.g. bfloat16 for fp32 weights trained in
            mixed precision; default: each head's own. Autocast makes no difference.

    Raises:
        ValueError: shapes or vocabularies differ, Top-K exceeds the vocabulary, a hidden state is not finite.
    """
    hidden = {
        "student_hidden": student_hidden,
        "teacher_hidden": teacher_hidden,
        "privileged_student_hidden": privileged_student_hidden,
    }
    vocabulary = student_head.shape[0]
    check_inputs(hidden, response_ids, response_mask, vocabulary, settings.top_k)
    mask = response_mask.bool()
    for name, tensor in hidden.items():
        if not torch.isfinite(tensor[mask]).all():
            raise ValueError(f"{name} holds a value that is not finite at a response token")
        head_name, head = ("teacher_head", teacher_head) if name == "teacher_hidden" else ("student_head", student_head)
        if head.ndim != 2 or head.shape[1] != tensor.shape[2]:
            raise ValueError(f"{head_name} must be [V, {tensor.shape[2]}] to project {name}, got {tuple(head.shape)}")
    if teacher_head.shape[0] != vocabulary:
        raise ValueError(f"teacher_head has a vocabulary of {teacher_head.shape[0]}, student_head of {vocabulary}")
    sources = {
        PRIVILEGED_TEACHER: Projection(teacher_hidden, teacher_head, dtype=dtype).constant(),
        PRIVILEGED_STUDENT: Projection(privileged_student_hidden, student_head, dtype=dtype).constant(),
    }
    scores = {
        source: score_tokens(projection, response_ids, mask, settings.top_k, chunk_size)
        for source, projection in sources.items()
    }
    teacher_logp, privileged_student_logp = (scores[source].logp for source in sources)
    regime, gap, thresholds = route_tokens(teacher_logp, privileged_student_logp, mask, settings)
    plan = dopd_plan(regime, settings)
    student = Projection(student_hidden, student_head, dtype=dtype)
    taught = fused_plan_loss(plan, student, sources, response_ids, mask, scores, chunk_size=chunk_size)
    return DopdOutput(taught.loss, taught.token_loss, regime, gap, teacher_logp, privileged_student_logp, thresholds)


def check_inputs(
    tensors: dict[str, Tensor], response_ids: Tensor, response_mask: Tensor, vocabulary: int, top_k: int
) -> None:
    """Raise a ValueError that names the first tensor whose shape or content cannot be used."""
    if response_ids.ndim != 2:
        raise ValueError(f"response_ids must be [B, N], got shape {tuple(response_ids.shape)}")
    if response_mask.shape != response_ids.shape:
        raise ValueError(
            f"response_mask has shape {tuple(response_mask.shape)}, response_ids has {tuple(response_ids.shape)}"
        )
    if response_ids.is_floating_point() or response_ids.dtype == torch.bool:
        raise ValueError(f"response_ids must be integers, got {response_ids.dtype}")
    mask = response_mask.bool()
    for name, tensor in tensors.items():
        if tensor.ndim != 3 or tensor.shape[:2] != response_ids.shape:
            raise ValueError(
                f"{name} must be [B, N, .] with [B, N] = {tuple(response_ids.shape)}, got {tuple(tensor.shape)}"
            )
        if torch.isnan(tensor[mask]).any() or torch.isposinf(tensor[mask]).any():
            raise ValueError(f"{name} holds NaN or +inf at a response token")
        if torch.isneginf(tensor[mask]).all(dim=-1).any():
            raise ValueError(f"{name} is -inf everywhere at a response token, which is no distribution")
    if top_k > vocabulary:
        raise ValueError(f"top_k={top_k} is larger than the vocabulary of {vocabulary} entries")
    chosen = response_ids[mask]
    if chosen.numel() and (chosen.min() < 0 or chosen.max() >= vocabulary):
        raise ValueError(f"response_ids must be in [0, {vocabulary}), got {int(chosen.min())} to {int(chosen.max())}")


def _response_logp(logits: Tensor, response_ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of the response tokens, `[B, N]`, zero where masked, no gradient."""
    chosen = sampled_logp(log_softmax(logits[mask].detach()), response_ids[mask])
    return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen)
