"""Execute a plan from hidden states and output heads, never holding `[tokens, vocabulary]` for more than one chunk.

Only response tokens are projected, `chunk_size` of them at a time; each chunk's logits live during its own forward and,
recomputed, during its own backward.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dopd_vl.core.divergences import entropy, log_softmax, sampled_logp
from dopd_vl.core.dopd import (
    PRIVILEGED_STUDENT,
    PRIVILEGED_TEACHER,
    DopdOutput,
    DopdSettings,
    check_inputs,
    dopd_plan,
    route_tokens,
)
from dopd_vl.core.plan import Plan, Source, execute_plan, reduce

DEFAULT_CHUNK_SIZE = 512
"""Response tokens projected at a time: at a vocabulary of 151,936, 512 rows of fp32 logits take 0.31 GB a policy."""


class Projection(NamedTuple):
    """Hidden states and the head that turns them into logits: `hidden[B, N, H] @ weight[V, H].T + bias[V]`."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def logits(self, rows: tuple[Tensor, ...] | slice) -> Tensor:
        """Logits of the chosen rows, `[rows, V]`, in the head's dtype."""
        hidden = self.hidden[rows]
        return torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


class SampledScores(NamedTuple):
    """What routing and logging need of one policy at the sampled tokens, `[B, N]` each, zero where masked."""

    logp: Tensor
    """log-probability of the sampled token, nats"""
    entropy: Tensor
    """entropy of the whole distribution, nats"""
    top_k_mass: Tensor
    """probability mass of the K likeliest tokens"""


def score_sampled(
    projection: Projection,
    response_ids: Tensor,
    response_mask: Tensor,
    top_k: int,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> SampledScores:
    """Log-probability of the sampled tokens, entropy and kept Top-K mass of one policy, chunk by chunk, no gradient."""
    mask = response_mask.bool()
    dtype = torch.promote_types(projection.hidden.dtype, torch.float32)
    columns = torch.zeros(3, *mask.shape, dtype=dtype, device=projection.hidden.device)
    with torch.no_grad():
        for rows in _chunks(mask, chunk_size):
            logp = log_softmax(projection.logits(rows))
            mass = logp.topk(min(top_k, logp.shape[-1]), dim=-1).values.exp().sum(-1)
            for column, values in zip(
                columns, (sampled_logp(logp, response_ids[rows]), entropy(logp), mass), strict=True
            ):
                column[rows] = values.to(column.dtype)
    return SampledScores(*columns)


def fused_plan_loss(
    plan: Plan,
    student: Projection,
    sources: Mapping[Source, Projection],
    response_ids: Tensor,
    response_mask: Tensor,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> Tensor:
    """Weighted loss per token `[B, N]`, as `execute_plan`; differentiable in the student's hidden states and head."""
    mask = response_mask.bool()
    dtype = torch.promote_types(student.hidden.dtype, torch.float32)
    chunks = _chunks(mask, chunk_size)
    token_loss = student.hidden.new_zeros(mask.shape, dtype=dtype) + student.hidden[:0].sum()
    if not chunks:  # without a token the head still gets its gradient of zero
        return token_loss + student.weight[:0].sum().to(dtype)
    # The chunks' gradients add up in fp32: in bf16 their sum would be biased towards the first ones.
    weight, bias = (t if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in student[1:])
    hidden_chunks = student.hidden[mask].split(chunk_size)
    for rows, hidden in zip(chunks, hidden_chunks, strict=True):

        def chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: tuple[Tensor, ...] = rows) -> Tensor:
            chunk_plan = replace(plan, terms=tuple(replace(t, weight=t.weight[rows][None]) for t in plan.terms))
            needed = [t.source for t in chunk_plan.terms if (t.weight != 0).any()]
            with torch.no_grad():
                source_logits = {source: sources[source].logits(rows)[None] for source in dict.fromkeys(needed)}
            head = student.weight.dtype
            projection = Projection(hidden, weight.to(head), None if bias is None else bias.to(head))
            student_logits = projection.logits(slice(None))[None]
            all_true = torch.ones_like(response_ids[rows][None], dtype=torch.bool)
            return execute_plan(chunk_plan, student_logits, source_logits, response_ids[rows][None], all_true)[0]

        values = checkpoint(chunk_loss, hidden, weight, bias, use_reentrant=False)
        token_loss = token_loss.index_put(rows, values.to(dtype))
    return token_loss


def fused_dopd_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    privileged_student_hidden: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    settings: DopdSettings = DopdSettings(),  # noqa: B008 - frozen
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> DopdOutput:
    """`dopd_loss` from hidden states `[B, N, H]` and heads `[V, H]`; the privileged student shares the student's head.

    Differentiable in `student_hidden` and `student_head` alone.

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
    teacher = Projection(teacher_hidden.detach(), teacher_head.detach())
    privileged_student = Projection(privileged_student_hidden.detach(), student_head.detach())
    teacher_logp = score_sampled(teacher, response_ids, mask, settings.top_k, chunk_size).logp
    privileged_student_logp = score_sampled(privileged_student, response_ids, mask, settings.top_k, chunk_size).logp
    routing = route_tokens(teacher_logp, privileged_student_logp, mask, settings)
    plan = dopd_plan(routing.regime, settings)
    sources = {PRIVILEGED_TEACHER: teacher, PRIVILEGED_STUDENT: privileged_student}
    student = Projection(student_hidden, student_head)
    token_loss = fused_plan_loss(plan, student, sources, response_ids, mask, chunk_size)
    return DopdOutput(
        loss=reduce(token_loss, mask, plan.reduction),
        token_loss=token_loss,
        regime=routing.regime,
        gap=routing.gap,
        teacher_logp=teacher_logp,
        privileged_student_logp=privileged_student_logp,
        thresholds=routing.thresholds,
    )


def _chunks(mask: Tensor, chunk_size: int) -> list[tuple[Tensor, ...]]:
    """Indices of the response tokens, `chunk_size` at a time."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    indices = mask.nonzero(as_tuple=True)
    return list(zip(*(index.split(chunk_size) for index in indices), strict=True)) if len(indices[0]) else []
