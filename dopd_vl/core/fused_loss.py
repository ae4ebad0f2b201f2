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
a term of full support projects its policy once more.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dopd_vl.core.closed_forms import SparseResult, Support, dense_divergence, sparse_divergence
from dopd_vl.core.divergences import log_softmax, without_autocast
from dopd_vl.core.plan import Plan, PolicyGradient, Source, Term, item_count, token_scale
from dopd_vl.core.projection import (
    DEFAULT_CHUNK_SIZE,
    Projection,
    Projector,
    TokenScores,
    add_product,
    as_factor,
    chunks,
    mass_of,
    product,
    top_k_of,
    wide,
)

Index = tuple[Tensor, ...]
OnLogits = Callable[[Index, Tensor], None]
"""Called with the places of R response tokens and the student's logits `[R, V]` of them, which it must not change."""

DENSE_DIVISOR = 2
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
    on_logits: OnLogits | None = None,
) -> FusedLoss:
    """The same token losses as `execute_plan`; differentiable in the student's hidden states, head and bias alone.

    Args:
        sources: the projection of each of the plan's policies. One whose terms are all of sampled support, or of the
            Top-K of the policy itself, may be left out where `scores` has it.
        scores: what `score_tokens` kept of the policies; whatever a term needs beyond that is projected here.
        scale: `[B, N]`, each token's factor in `loss`; default: as `reduce` of the plan's reduction.
        on_logits: called with each chunk of the student's logits; tokens that no term applies to are in none.

    Gradients of the head and of the bias add up in fp32 over the chunks, whatever the dtype of the weights.
    """
    mask = response_mask.bool()
    if scale is None:
        count = item_count(mask, plan.reduction).clamp(min=1)
        scale = token_scale(mask, plan.reduction, wide(student.hidden.dtype)) / count
    constants = {source: projection.constant() for source, projection in sources.items()}
    sweep = partial(_sweep, plan, constants, scores or {}, response_ids, mask, chunk_size, on_logits)
    return FusedLoss(
        *_PlanLoss.apply(student.hidden, student.weight, student.bias, student.dtype, scale.detach(), sweep)
    )


def rows_to_keep(plan: Plan, scores: Mapping[Source, TokenScores]) -> dict[Source, Tensor]:
    """The tokens, bool `[B, N]`, at which a plan needs a policy's hidden states beyond its scores."""
    needed: dict[Source, Tensor] = {}
    for term in plan.terms:
        if isinstance(term, Term) and not (term.source in scores and scores_suffice(term, scores[term.source])):
            rows = term.weight != 0
            needed[term.source] = needed[term.source] | rows if term.source in needed else rows
    return needed


def scores_suffice(term: Term, scores: TokenScores) -> bool:
    """Whether a term finds in the scores of its policy all it needs of it."""
    if term.support == "sampled":
        return True
    return term.support == "top_k" and term.top_k_source == "target" and term.top_k <= scores.top_k_ids.shape[-1]


class _PlanLoss(torch.autograd.Function):
    """`loss` and `token_loss` of a sweep; the gradient of `loss` is taken along in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: Any, scale: Tensor, sweep: Any
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, scale)
        ctx.dtype, ctx.sweep = dtype, sweep
        columns, ctx.gradients = sweep(Projection(hidden, weight, bias, dtype), scale, ctx.needs_input_grad[:3])
        token_loss, entropy, kept_mass = columns
        ctx.mark_non_differentiable(entropy, kept_mass)
        return (token_loss * scale).sum(), token_loss, entropy, kept_mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor | None, token_gradient: Tensor | None, *_: None) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if token_gradient is None and gradients is not None:
            assert loss_gradient is not None
            return *(g if g is None else g.mul_(loss_gradient) for g in gradients), None, None, None
        hidden, weight, bias, scale = ctx.saved_tensors
        factor = torch.zeros_like(scale) if loss_gradient is None else scale * loss_gradient
        if token_gradient is not None:
            factor = factor + token_gradient
        student = Projection(hidden, weight, bias, ctx.dtype)
        _, gradients = ctx.sweep(student, factor, ctx.needs_input_grad[:3])
        return *gradients, None, None, None


def _sweep(
    plan: Plan,
    sources: Mapping[Source, Projection],
    scores: Mapping[Source, TokenScores],
    response_ids: Tensor,
    mask: Tensor,
    chunk_size: int,
    on_logits: OnLogits | None,
    student: Projection,
    factor: Tensor,
    needs: Sequence[bool],
) -> tuple[Sequence[Tensor], list[Tensor | None]]:
    """Token losses, entropy and kept mass, `[B, N]` each; the gradients of `sum(token_loss * factor)` in the student's
    three tensors."""
    dtype = wide(student.hidden.dtype)
    columns = [torch.full(mask.shape, start, dtype=dtype, device=mask.device) for start in (0.0, torch.nan, torch.nan)]
    # A row that no term applies to is not projected at all.
    dense, taught = torch.zeros_like(mask), torch.zeros_like(mask)
    for term in plan.terms:
        applies = mask & (term.weight != 0)
        taught |= applies
        if isinstance(term, Term) and term.support == "full":
            dense |= applies
    with without_autocast(student.hidden):
        learner = Projector(student)
        policies = {source: Projector(projection) for source, projection in sources.items()}
        into = Gradients(learner, needs)
        for where, size in ((taught & ~dense, chunk_size), (dense, max(1, chunk_size // DENSE_DIVISOR))):
            for rows in chunks(where, size):
                chunk = Chunk(learner.logits(rows), rows, response_ids[rows])
                if on_logits is not None:
                    on_logits(rows, chunk.logits)  # before the work overwrites them
                taught_rows = chunk.teach(plan, policies, scores, factor[rows])
                into.add(rows, taught_rows.gradient)
                for column, values in zip(columns, taught_rows[1:], strict=True):
                    column[rows] = values.to(dtype)
        return columns, into.result()


class TaughtRows(NamedTuple):
    """What a plan makes of R response tokens."""

    gradient: Tensor
    """`[R, V]`, of `sum(values * factor)` in the student's logits"""
    values: Tensor
    """`[R]`, the weighted losses"""
    entropy: Tensor
    """`[R]`, of the student, nats"""
    kept_mass: Tensor
    """`[R]`, what the student gives to the support of a Top-K term; NaN where a row has none"""


class Chunk:
    """R response tokens and the student's logits of them, `[R, V]` in fp32 or fp64, which the work overwrites."""

    def __init__(self, logits: Tensor, rows: Index, ids: Tensor):
        self.logits, self.rows, self.ids = logits, rows, ids

    def teach(
        self,
        plan: Plan,
        sources: Mapping[Source, Projector],
        scores: Mapping[Source, TokenScores],
        factor: Tensor,
    ) -> TaughtRows:
        """Losses and gradient of the plan at these tokens, each token's gradient times its `factor[R]`."""
        z = self.logits
        values = z.new_zeros(len(z))
        kept_mass = z.new_full((len(z),), torch.nan)
        sparse: list[SparseTerm] = []
        dense: list[tuple[Term, Tensor, Tensor]] = []
        for term in plan.terms:
            weight = term.weight[self.rows].to(z.dtype)
            chosen = weight.nonzero().squeeze(-1)
            if not len(chosen):
                continue
            if isinstance(term, Term) and term.support == "full":
                dense.append((term, chosen, weight[chosen]))
            else:
                sparse.append(self._sparse_term(term, chosen, weight[chosen], sources, scores))

        largest = z.amax(-1, keepdim=True)
        gradient: Tensor | None = None
        if dense:
            total, weighted = mass_of(z, largest)
            gradient = self._dense_gradient(dense, largest + total.log(), sources, factor, values, last=not sparse)
        if sparse or gradient is None:
            total, weighted = mass_of(z, largest, keep=True)
        log_z = largest + total.log()
        entropy = (total.log() - weighted / total).squeeze(-1)
        if not sparse and gradient is not None:
            return TaughtRows(gradient, values, entropy, kept_mass)
        mass = z
        everywhere = torch.zeros_like(values)  # factor of the student's probabilities in the gradient
        terms_of_row = torch.zeros_like(values, dtype=torch.long)
        parts = []
        for item in sparse:
            result = self._sparse_result(item, mass, total, log_z)
            values[item.rows] += item.weight * result.value
            scaled = item.weight * factor[item.rows].to(z.dtype)
            part = scaled * result.outside, scaled.unsqueeze(-1) * result.there
            everywhere[item.rows] += part[0]
            terms_of_row[item.rows] += 1
            parts.append(part)
        mass.mul_(everywhere.unsqueeze(-1) / total)
        for item, (outside, there) in zip(sparse, parts, strict=True):
            # Where a row has one such term, its support's entries hold that term's gradient and nothing else: to
            # correct what stands there would lose digits. Several terms must add up.
            alone = (terms_of_row[item.rows] == 1).unsqueeze(-1)
            probability = (item.at - log_z[item.rows]).exp()
            if isinstance(item.term, Term) and item.term.support == "top_k":
                kept_mass[item.rows] = probability.sum(-1)
            place = (item.rows.unsqueeze(-1), item.ids)
            mass[place] = mass[place].masked_fill(alone, 0.0)
            added = torch.where(alone, there, there - outside.unsqueeze(-1) * probability)
            mass.index_put_(place, added, accumulate=True)
        return TaughtRows(mass if gradient is None else mass.add_(gradient), values, entropy, kept_mass)

    def _dense_gradient(
        self,
        terms: Sequence[tuple[Term, Tensor, Tensor]],
        log_z: Tensor,
        sources: Mapping[Source, Projector],
        factor: Tensor,
        losses: Tensor,
        last: bool,
    ) -> Tensor:
        """The gradient of the terms of full support; adds their losses to `losses[R]`.

        `last`: no other term needs the logits, which the last of these terms may then overwrite.
        """
        gradient: Tensor | None = None
        for number, (term, chosen, weight) in enumerate(terms, start=1):
            every_row = len(chosen) == len(self.logits)
            if every_row and last and number == len(terms):
                logp = self.logits.sub_(log_z)
            else:
                logp = self.logits - log_z if every_row else self.logits[chosen] - log_z[chosen]
            target_logp = log_softmax(_projection(sources, term.source).logits(self._index(chosen)))
            values, slope = dense_divergence(term.divergence, logp, target_logp.to(logp.dtype))
            losses[chosen] += weight * values
            slope.mul_((weight * factor[chosen].to(weight.dtype)).unsqueeze(-1))
            if gradient is None:
                gradient = slope if every_row else torch.zeros_like(self.logits).index_copy_(0, chosen, slope)
            else:
                gradient.index_add_(0, chosen, slope)
        assert gradient is not None
        return gradient

    def _sparse_result(self, item: "SparseTerm", mass: Tensor, total: Tensor, log_z: Tensor) -> SparseResult:
        logp = item.at - log_z[item.rows]
        if isinstance(item.term, PolicyGradient):
            ones = torch.ones_like(item.weight)
            return SparseResult(-ones, ones, logp.exp() - 1.0)
        tail = torch.empty_like(item.weight)
        if item.term.tail == "bucket":
            # Summed over the tail itself: one minus the kept mass has no digits left where the student is sure.
            place = (item.rows.unsqueeze(-1), item.ids)
            kept = mass[place]
            mass[place] = 0.0
            tail = mass.sum(-1)[item.rows].log() - total[item.rows, 0].log()
            mass[place] = kept
        return sparse_divergence(item.term.divergence, item.term.tail, Support(logp, tail), item.target)

    def _sparse_term(
        self,
        term: Term | PolicyGradient,
        chosen: Tensor,
        weight: Tensor,
        sources: Mapping[Source, Projector],
        scores: Mapping[Source, TokenScores],
    ) -> "SparseTerm":
        if isinstance(term, PolicyGradient):
            ids = self.ids[chosen].unsqueeze(-1)
            target = Support(torch.zeros_like(weight).unsqueeze(-1), weight)  # there is none
            return SparseTerm(term, chosen, weight, ids, self.logits[chosen.unsqueeze(-1), ids], target)
        known = scores.get(term.source)
        if known is not None and scores_suffice(term, known):
            ids, target = self._known_support(term, chosen, known)
            return SparseTerm(term, chosen, weight, ids, self.logits[chosen.unsqueeze(-1), ids], target)
        ids, counts, target = self._support(term, chosen, sources)
        at = self.logits[chosen.unsqueeze(-1), ids].masked_fill(~counts, -torch.inf)
        return SparseTerm(term, chosen, weight, ids, at, target)

    def _known_support(self, term: Term, chosen: Tensor, known: TokenScores) -> tuple[Tensor, Support]:
        there = self._index(chosen)
        if term.support == "sampled":
            ids = self.ids[chosen].unsqueeze(-1)
            support = Support(known.logp[there].unsqueeze(-1), known.rest_logp[there])
        else:
            stored = tuple(index.to(known.top_k_ids.device) for index in there)
            ids = known.top_k_ids[stored][:, : term.top_k].to(self.logits.device).long()
            logp = known.top_k_logp[stored].to(self.logits.device)
            beyond = logp[:, term.top_k :].logsumexp(-1)
            support = Support(logp[:, : term.top_k], torch.logaddexp(known.tail_logp[there], beyond))
        return ids, Support(*(part.to(device=self.logits.device, dtype=self.logits.dtype) for part in support))

    def _support(
        self, term: Term, chosen: Tensor, sources: Mapping[Source, Projector]
    ) -> tuple[Tensor, Tensor, Support]:
        """Entries `[r, K]`, which of them count (one given twice counts once), and the target's mass there."""
        target = log_softmax(_projection(sources, term.source).logits(self._index(chosen))).to(self.logits.dtype)
        counts = torch.ones(len(chosen), 1, dtype=torch.bool, device=target.device)
        if term.support == "sampled":
            ids = self.ids[chosen].unsqueeze(-1)
        else:
            if term.top_k > target.shape[-1]:
                raise ValueError(f"top_k={term.top_k} is larger than the vocabulary of {target.shape[-1]} entries")
            wanted = []
            if term.top_k_source in ("target", "union"):
                wanted.append(top_k_of(target, term.top_k)[1])
            if term.top_k_source in ("student", "union"):
                wanted.append(top_k_of(self.logits[chosen], term.top_k)[1])
            ids = torch.cat(wanted, dim=-1)
            counts = torch.ones_like(ids, dtype=torch.bool)
            if len(wanted) == 2:
                counts[:, term.top_k :] = ~(wanted[1].unsqueeze(-1) == wanted[0].unsqueeze(1)).any(-1)
        at = target.gather(-1, ids).masked_fill(~counts, -torch.inf)
        return ids, counts, Support(at, target.scatter_(-1, ids, -torch.inf).logsumexp(-1))

    def _index(self, chosen: Tensor) -> Index:
        return tuple(index[chosen] for index in self.rows)


class SparseTerm(NamedTuple):
    """A term of sampled or Top-K support at r of a chunk's rows."""

    term: Term | PolicyGradient
    rows: Tensor
    """`[r]`"""
    weight: Tensor
    """`[r]`"""
    ids: Tensor
    """`[r, K]`, the support"""
    at: Tensor
    """`[r, K]`, the student's logits there, -inf for an entry that does not count"""
    target: Support


class Gradients:
    """Sums, over chunks, the gradients of hidden states `[B, N, H]`, head `[V, H]` and bias `[V]`; the latter two in
    fp32 at least: in bf16 their sum would be biased towards the first chunks."""

    def __init__(self, student: Projector, needs: Sequence[bool]):
        self.student = student
        hidden, weight, bias, _ = student.projection
        self.hidden = torch.zeros_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide(student.dtype)) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide(student.dtype)) if bias is not None and needs[2] else None

    def add(self, rows: Index, gradient: Tensor) -> None:
        """Add a chunk's: `gradient[R, V]` in the logits."""
        factor = as_factor(gradient, self.student.dtype)
        if self.hidden is not None:
            self.hidden[rows] = product(factor, self.student.weight).to(self.hidden.dtype)
        if self.weight is not None:
            add_product(self.weight, factor.T, self.student.rows(rows))
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def result(self) -> list[Tensor | None]:
        """In the dtypes of the tensors that they are of."""
        given = self.student.projection[:3]
        pairs = zip((self.hidden, self.weight, self.bias), given, strict=True)
        return [None if g is None or of is None else g.to(of.dtype) for g, of in pairs]


def _projection(sources: Mapping[Source, Projector], source: Source) -> Projector:
    if source not in sources:
        raise ValueError(f"the plan needs the hidden states and the head of {source}")
    return sources[source]
