"""Execute a plan from hidden states and output heads, loss and gradient in one sweep.

Never more than one chunk of `[tokens, vocabulary]` is held. The gradient of every divergence is known in closed form,
so each chunk of the student's logits turns into the gradient of its hidden states and of the head at once, and nothing
is projected again in the backward pass. Write s for the student's and t for the supervising policy's probabilities; a
divergence D of the student from it has the gradient, in the student's logits z,

    dD/dz_v = s_v (a_v - sum_w s_w a_w),    a_v = dD/ds_v

    reverse KL   a_v = log s_v - log t_v
    forward KL   a_v = -t_v / s_v
    JS           a_v = (log s_v - log m_v) / 2,   m = (s + t) / 2

With a Top-K or sampled support, a_v is the same for all v of the tail: the gradient is the student's distribution times
a number per row, corrected at K entries. What such a term needs of its policy has been kept by `score_tokens`, so only
a term of full support (in DOPD: the HT tokens') projects its policy once more.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dopd_vl.core.dopd import (
    PRIVILEGED_STUDENT,
    PRIVILEGED_TEACHER,
    DopdOutput,
    DopdSettings,
    check_inputs,
    dopd_plan,
    route_tokens,
)
from dopd_vl.core.plan import Plan, Source, Term, item_count, token_scale
from dopd_vl.core.projection import DEFAULT_CHUNK_SIZE, Projection, TokenScores, chunks, score_tokens
from dopd_vl.core.sweep import Chunk, Gradients, Index, scores_suffice

Look = Callable[[Index, Tensor], None]
"""Is shown the student's logits `[R, V]` of some response tokens, by their places; must leave them as they are."""

DENSE_SHARE = 2
"""Rows with a term of full support need several `[rows, V]` at once: a chunk of them is this many times smaller."""


class FusedLoss(NamedTuple):
    """The first two carry a gradient; that of `loss` is computed already, that of `token_loss` costs a second sweep."""

    loss: Tensor
    """scalar, `sum(token_loss * scale)`"""
    token_loss: Tensor
    """`[B, N]`, weighted, zero where masked"""
    entropy: Tensor
    """`[B, N]`, of the student, nats; NaN at tokens without any term, which are not projected"""
    kept_mass: Tensor
    """`[B, N]`, what the student gives to the support of a Top-K term; NaN at tokens without one"""


def fused_plan_loss(
    plan: Plan,
    student: Projection,
    sources: Mapping[Source, Projection],
    response_ids: Tensor,
    response_mask: Tensor,
    scores: Mapping[Source, TokenScores] | None = None,
    scale: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    look: Look | None = None,
) -> FusedLoss:
    """The same token losses as `execute_plan`; differentiable in the student's hidden states, head and bias alone.

    Args:
        sources: the projection of each of the plan's policies. One whose terms are all of sampled support, or of the
            Top-K of the policy itself, may be left out where `scores` has it.
        scores: what `score_tokens` kept of the policies; whatever a term needs beyond that is projected here.
        scale: `[B, N]`, each token's factor in `loss`; default: as `reduce` of the plan's reduction.
        look: is shown each chunk of the student's logits; tokens that no term applies to are in none.

    Gradients of the head and of the bias add up in fp32 over the chunks, whatever the dtype of the weights.
    """
    mask = response_mask.bool()
    if scale is None:
        count = item_count(mask, plan.reduction).clamp(min=1)
        scale = token_scale(mask, plan.reduction, torch.promote_types(student.hidden.dtype, torch.float32)) / count
    sweep = partial(
        _sweep, plan, {s: _constant(p) for s, p in sources.items()}, scores or {}, response_ids, mask, chunk_size, look
    )
    return FusedLoss(*_PlanLoss.apply(*student, scale.detach(), sweep))


class _PlanLoss(torch.autograd.Function):
    """`loss` and `token_loss` of a sweep; the gradient of `loss` is taken along in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, sweep: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, scale)
        device = hidden.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.sweep = sweep
        columns, ctx.gradients = sweep(Projection(hidden, weight, bias), scale, ctx.needs_input_grad[:3])
        token_loss, entropy, kept_mass = columns
        ctx.mark_non_differentiable(entropy, kept_mass)
        return (token_loss * scale).sum(), token_loss, entropy, kept_mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor | None, token_gradient: Tensor | None, *_: None) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if token_gradient is None and gradients is not None:
            assert loss_gradient is not None
            return *(g if g is None else g.mul_(loss_gradient) for g in gradients), None, None
        hidden, weight, bias, scale = ctx.saved_tensors
        factor = torch.zeros_like(scale) if loss_gradient is None else scale * loss_gradient
        if token_gradient is not None:
            factor = factor + token_gradient
        with torch.autocast(**ctx.autocast):
            _, gradients = ctx.sweep(Projection(hidden, weight, bias), factor, ctx.needs_input_grad[:3])
        return *gradients, None, None


def _sweep(
    plan: Plan,
    sources: Mapping[Source, Projection],
    scores: Mapping[Source, TokenScores],
    response_ids: Tensor,
    mask: Tensor,
    chunk_size: int,
    look: Look | None,
    student: Projection,
    factor: Tensor,
    needs: Sequence[bool],
) -> tuple[Sequence[Tensor], list[Tensor | None]]:
    """Token losses, entropy and kept mass, `[B, N]` each; the gradients of `sum(token_loss * factor)` in the student's
    three tensors."""
    dtype = torch.promote_types(student.hidden.dtype, torch.float32)
    columns = [torch.full(mask.shape, start, dtype=dtype, device=mask.device) for start in (0.0, torch.nan, torch.nan)]
    into = Gradients(student, needs)
    # A row that no term applies to is not projected at all.
    dense, taught = torch.zeros_like(mask), torch.zeros_like(mask)
    for term in plan.terms:
        applies = mask & (term.weight != 0)
        taught |= applies
        if isinstance(term, Term) and term.support == "full":
            dense |= applies
    for where, size in ((taught & ~dense, chunk_size), (dense, max(1, chunk_size // DENSE_SHARE))):
        for rows in chunks(where, size):
            logits = student.logits(rows)
            chunk = Chunk(logits.to(torch.promote_types(logits.dtype, torch.float32)), rows, response_ids[rows])
            if look is not None:
                look(rows, chunk.logits)  # before the work overwrites them
            into.add(rows, chunk.teach(plan, sources, scores, factor[rows]).to(student.compute_dtype))
            for column, values in zip(columns, (chunk.values, chunk.entropy, chunk.kept_mass), strict=True):
                column[rows] = values.to(dtype)
    return columns, into.result()


def rows_to_keep(plan: Plan, scores: Mapping[Source, TokenScores]) -> dict[Source, Tensor]:
    """The tokens, bool `[B, N]`, at which a plan needs a policy's hidden states beyond its scores."""
    needed: dict[Source, Tensor] = {}
    for term in plan.terms:
        if isinstance(term, Term) and not (term.source in scores and scores_suffice(term, scores[term.source])):
            rows = term.weight != 0
            needed[term.source] = needed[term.source] | rows if term.source in needed else rows
    return needed


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
    sources = {
        PRIVILEGED_TEACHER: _constant(Projection(teacher_hidden, teacher_head)),
        PRIVILEGED_STUDENT: _constant(Projection(privileged_student_hidden, student_head)),
    }
    scores = {
        source: score_tokens(projection, response_ids, mask, settings.top_k, chunk_size)
        for source, projection in sources.items()
    }
    teacher_logp, privileged_student_logp = (scores[source].logp for source in sources)
    routing = route_tokens(teacher_logp, privileged_student_logp, mask, settings)
    plan = dopd_plan(routing.regime, settings)
    student = Projection(student_hidden, student_head)
    taught = fused_plan_loss(plan, student, sources, response_ids, mask, scores, chunk_size=chunk_size)
    return DopdOutput(
        loss=taught.loss,
        token_loss=taught.token_loss,
        regime=routing.regime,
        gap=routing.gap,
        teacher_logp=teacher_logp,
        privileged_student_logp=privileged_student_logp,
        thresholds=routing.thresholds,
    )


def _constant(projection: Projection) -> Projection:
    hidden, weight, bias = projection
    return Projection(hidden.detach(), weight.detach(), None if bias is None else bias.detach())
