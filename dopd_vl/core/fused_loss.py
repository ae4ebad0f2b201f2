"""Execute a plan from hidden states and output heads, loss and gradient in one sweep.

Never more than one chunk of `[tokens, vocabulary]` is held. The gradient of every divergence is known in closed form,
so each chunk of the student's logits turns into the gradient of its hidden states and of the head at once, and nothing
is projected again in the backward pass. Write s for the student's and t for the supervising policy's probabilities; a
divergence D of the student from it has the gradient, in the student's logits z,

    dD/dz_v = s_v (a_v - sum_w s_w a_w),    a_v = dD/ds_v

    reverse KL   a_v = log s_v - log t_v
    forward KL   a_v = -t_v / s_v
    JS           a_v = (log s_v - log m_v) / 2,   m = (s + t) / 2

An entry above a term's `entry_clip` has dD/ds_v = 0: with a reverse KL, where a_v leaves out the 1 that all entries
have and that cancels, a_v = -1.

With a Top-K or sampled support, a_v is the same for all v of the tail: the gradient is the student's distribution times
a number per row, corrected at K entries. What such a term needs of its policy has been kept by `score_tokens`, so only
a term of full support projects its policy once more.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dopd_vl.core.closed_forms import SparseResult, Support, sparse_divergence
from dopd_vl.core.divergences import without_autocast
from dopd_vl.core.passes import dense_divergence, mass_of, mass_outside, softmax_gradient, top_k_of
from dopd_vl.core.plan import Plan, PolicyGradient, Source, Term, item_count, token_scale
from dopd_vl.core.projection import Projection, Projector, TokenScores, add_product, as_factor, product, wide

Index = tuple[Tensor, ...]
DENSE_DIVISOR = 2
"""Rows with a term of full support need the target's logits, too: a chunk of them is this many times smaller."""


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
    chunk_size: int | None = None,
) -> FusedLoss:
    """The same token losses as `execute_plan`; differentiable in the student's hidden states, head and bias alone.

    Args:
        sources: the projection of each of the plan's policies. One whose terms are all of sampled support, or of the
            Top-K of the policy itself, may be left out where `scores` has it.
        scores: what `score_tokens` kept of the policies; whatever a term needs beyond that is projected here.
        scale: `[B, N]`, each token's factor in `loss`; default: as `reduce` of the plan's reduction.
        chunk_size: tokens projected at a time, half as many where a term of full support applies; default:
            `chunk_size_for` the student.

    Gradients of the head and of the bias add up in fp32 over the chunks, whatever the dtype of the weights.
    """
    mask = response_mask.bool()
    if scale is None:
        count = item_count(mask, plan.reduction).clamp(min=1)
        scale = token_scale(mask, plan.reduction, wide(student.hidden.dtype)) / count
    size = student.chunk_size(chunk_size)
    constants = {source: projection.constant() for source, projection in sources.items()}
    sweep = partial(_sweep, plan, constants, scores or {}, response_ids, mask, size)
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
    student: Projection,
    factor: Tensor,
    needs: Sequence[bool],
) -> tuple[Sequence[Tensor], list[Tensor | None]]:
    """Token losses, entropy and kept mass, `[B, N]` each; the gradients of `sum(token_loss * factor)` in the student's
    three tensors."""
    dtype, device = wide(student.hidden.dtype), student.hidden.device
    columns = [torch.full(mask.shape, start, dtype=dtype, device=mask.device) for start in (0.0, torch.nan, torch.nan)]
    with without_autocast(student.hidden):
        learner = Projector(student)
        into = Gradients(learner, needs)
        supervisors = Supervisors(
            {source: Projector(projection) for source, projection in sources.items()},
            # Where they were kept elsewhere, at once: each chunk's copy would wait for the accelerator.
            {source: known.map(lambda tensor: tensor.to(device)) for source, known in scores.items()},
        )
        for chunk in chunks_of(plan, mask, chunk_size):
            logits = learner.logits(chunk.rows)
            in_place = logits.dtype == learner.factor_dtype
            gradient = logits if in_place else torch.empty_like(logits, dtype=learner.factor_dtype)
            taught = []
            for some, terms in chunk.pieces:
                rows = tuple(index[some] for index in chunk.rows)
                z = logits[some]
                piece = Piece(z, z if in_place else gradient[some], rows, response_ids[rows], factor[rows])
                taught.append(supervisors.teach(piece, [plan.terms[term] for term in terms]))
            into.add(chunk.rows, gradient)
            for column, values in zip(columns, map(torch.cat, zip(*taught, strict=True)), strict=True):
                column[chunk.rows] = values.to(dtype)
        return columns, into.result()


class Chunk(NamedTuple):
    """Response tokens that are projected together."""

    rows: Index
    """their places, `[R]` each"""
    pieces: list[tuple[slice, tuple[int, ...]]]
    """which of them the same terms of the plan apply to, and these terms' numbers"""


def chunks_of(plan: Plan, mask: Tensor, chunk_size: int) -> Iterator[Chunk]:
    """Every token that some term applies to, those that the same terms apply to one after another.

    One copy to the host decides everything: within a chunk nothing waits for the accelerator, and what a term works on
    is a slice. Tokens without a term of full support come first. A row that no term applies to is not projected at all.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    if not plan.terms:
        return
    applies = torch.stack([mask & (term.weight != 0) for term in plan.terms]).flatten(1).cpu()
    places = applies.any(0).nonzero().squeeze(1)
    kinds, kind = applies[:, places].unique(dim=1, return_inverse=True)
    dense = kinds[[isinstance(term, Term) and term.support == "full" for term in plan.terms]].any(0)
    order = (kind + dense[kind] * len(dense)).argsort(stable=True)
    places, kind = places[order], kind[order]
    rows = torch.unravel_index(places.to(mask.device), mask.shape)
    sparse = int((~dense[kind]).sum())
    for start, end, size in ((0, sparse, chunk_size), (sparse, len(kind), max(1, chunk_size // DENSE_DIVISOR))):
        for at in range(start, end, size):
            some = slice(at, min(at + size, end))
            pieces, begin = [], 0
            for number, count in zip(
                *(t.tolist() for t in kind[some].unique_consecutive(return_counts=True)), strict=True
            ):
                terms = tuple(kinds[:, number].nonzero().squeeze(1).tolist())
                pieces.append((slice(begin, begin + count), terms))
                begin += count
            yield Chunk(tuple(index[some] for index in rows), pieces)


class Piece(NamedTuple):
    """R response tokens that the same terms apply to."""

    logits: Tensor
    """`[R, V]`, of the student, in fp32 or fp64; the work overwrites them"""
    gradient: Tensor
    """`[R, V]`, where their gradient goes; may be the logits themselves"""
    rows: Index
    ids: Tensor
    """`[R]`"""
    factor: Tensor
    """`[R]`, of each token's gradient"""


class Taught(NamedTuple):
    """What a plan makes of R response tokens, besides their gradient."""

    values: Tensor
    """`[R]`, the weighted losses"""
    entropy: Tensor
    """`[R]`, of the student, nats"""
    kept_mass: Tensor
    """`[R]`, what the student gives to the support of a Top-K term; NaN without one"""


class SparseTerm(NamedTuple):
    """A term of sampled or Top-K support."""

    term: Term | PolicyGradient
    weight: Tensor
    """`[R]`"""
    ids: Tensor
    """`[R, K]`, the support"""
    there: Tensor
    """`[R, K]`, the student's logits there"""
    at: Tensor
    """`[R, K]`, the same, -inf for an entry that does not count"""
    target: Support

    @property
    def needs_tail(self) -> bool:
        return isinstance(self.term, Term) and self.term.tail == "bucket"


class Supervisors(NamedTuple):
    """The policies that supervise, by their projections and by what `score_tokens` kept of them."""

    projectors: Mapping[Source, Projector]
    scores: Mapping[Source, TokenScores]

    def teach(self, piece: Piece, terms: Sequence[Term | PolicyGradient]) -> Taught:
        """Losses of these terms, which apply to all of the piece's tokens; their gradient goes where it says."""
        z = piece.logits
        dense: list[tuple[Term, Tensor]] = []
        sparse: list[SparseTerm] = []
        for term in terms:
            weight = term.weight[piece.rows].to(z.dtype)
            if isinstance(term, Term) and term.support == "full":
                dense.append((term, weight))
            else:
                sparse.append(self._sparse_term(term, weight, piece))
        alone = len(sparse) == 1
        tails: list[Tensor | None] = [None] * len(sparse)
        mass = None
        for number, item in enumerate(sparse):
            if number == 0 or item.needs_tail:
                outside = mass_outside(z, item.ids)
                tails[number] = outside.log()
                mass = outside.including(item.at) if mass is None else mass
                if dense or not alone:
                    z.scatter_(-1, item.ids, item.there)
        if mass is None:
            mass = mass_of(z)
        log_z = mass.log()

        values = torch.zeros_like(piece.factor, dtype=z.dtype)
        kept_mass = torch.full_like(values, torch.nan)
        gradient: Tensor | None = None
        for number, (term, weight) in enumerate(dense, start=1):
            target = self._projector(term.source).logits(piece.rows)
            last = number == len(dense) and not sparse
            mine = z if last else z.clone()
            place = piece.gradient if len(terms) == 1 else mine
            scale = (weight * piece.factor.to(z.dtype)).unsqueeze(-1)
            mine_log_z = log_z
            if term.temperature != 1.0:
                mine.div_(term.temperature)
                target.div_(term.temperature)
                scale, mine_log_z = scale / term.temperature, mass_of(mine).log()
            pair = mine, mine_log_z, target, mass_of(target).log()
            value = dense_divergence(term.divergence, *pair, scale, place, term.entry_clip)
            values += weight * value.squeeze(-1)
            gradient = place if gradient is None else gradient.add_(place)

        everywhere = torch.zeros_like(log_z)  # factor of the student's probabilities in the gradient
        corrections = []
        for item, tail in zip(sparse, tails, strict=True):
            logp = item.at - log_z
            result = self._sparse_result(item, logp, None if tail is None else (tail - log_z).squeeze(-1))
            values += item.weight * result.value
            scale = (item.weight * piece.factor.to(z.dtype)).unsqueeze(-1)
            shared, there = scale * result.outside.unsqueeze(-1), scale * result.there
            everywhere += shared
            # Where a row has one such term, its support's entries hold that term's gradient and nothing else: to
            # correct what stands there would lose digits. Several terms must add up.
            corrections.append(there if alone else there - shared * logp.exp())
            if isinstance(item.term, Term) and item.term.support == "top_k":
                kept_mass = logp.exp().sum(-1)
        if sparse:
            if alone and dense:
                z.scatter_(-1, sparse[0].ids, -torch.inf)
            place = piece.gradient if len(terms) == 1 else z
            softmax_gradient(z, log_z, everywhere, place)
            for item, added in zip(sparse, corrections, strict=True):
                place.scatter_add_(-1, item.ids, added.to(place.dtype))
            gradient = place if gradient is None else gradient.add_(place)
        assert gradient is not None
        if gradient is not piece.gradient:
            piece.gradient.copy_(gradient)
        return Taught(values, mass.entropy().squeeze(-1), kept_mass)

    def _sparse_result(self, item: SparseTerm, logp: Tensor, tail: Tensor | None) -> SparseResult:
        if isinstance(item.term, PolicyGradient):
            ones = torch.ones_like(item.weight)
            return SparseResult(-ones, ones, logp.exp() - 1.0)
        tail = torch.full_like(item.weight, -torch.inf) if tail is None else tail
        term = item.term
        return sparse_divergence(term.divergence, term.tail, Support(logp, tail), item.target, term.entry_clip)

    def _sparse_term(self, term: Term | PolicyGradient, weight: Tensor, piece: Piece) -> SparseTerm:
        z, counts = piece.logits, None
        if isinstance(term, PolicyGradient):
            ids = piece.ids.unsqueeze(-1)
            target = Support(torch.zeros_like(z[:, :1]), weight)  # there is none
        else:
            known = self.scores.get(term.source)
            if known is not None and scores_suffice(term, known):
                ids, target = self._known_support(term, piece, known)
            else:
                ids, counts, target = self._support(term, piece)
        there = z.gather(-1, ids)
        at = there if counts is None else there.masked_fill(~counts, -torch.inf)
        return SparseTerm(term, weight, ids, there, at, target)

    def _known_support(self, term: Term, piece: Piece, known: TokenScores) -> tuple[Tensor, Support]:
        if term.support == "sampled":
            ids = piece.ids.unsqueeze(-1)
            support = Support(known.logp[piece.rows].unsqueeze(-1), known.rest_logp[piece.rows])
        else:
            ids = known.top_k_ids[piece.rows][:, : term.top_k].long()
            logp = known.top_k_logp[piece.rows]
            beyond = logp[:, term.top_k :].logsumexp(-1)
            support = Support(logp[:, : term.top_k], torch.logaddexp(known.tail_logp[piece.rows], beyond))
        return ids, Support(*(part.to(piece.logits.dtype) for part in support))

    def _support(self, term: Term, piece: Piece) -> tuple[Tensor, Tensor | None, Support]:
        """Entries `[R, K]`, which of them count (one given twice counts once; None for all), and the target's mass."""
        target = self._projector(term.source).logits(piece.rows)
        counts = None
        if term.support == "sampled":
            ids = piece.ids.unsqueeze(-1)
        else:
            if term.top_k > target.shape[-1]:
                raise ValueError(f"top_k={term.top_k} is larger than the vocabulary of {target.shape[-1]} entries")
            wanted = []
            if term.top_k_source in ("target", "union"):
                wanted.append(top_k_of(target, term.top_k)[1])
            if term.top_k_source in ("student", "union"):
                wanted.append(top_k_of(piece.logits, term.top_k)[1])
            ids = torch.cat(wanted, dim=-1)
            if len(wanted) == 2:
                counts = torch.ones_like(ids, dtype=torch.bool)
                counts[:, term.top_k :] = ~(wanted[1].unsqueeze(-1) == wanted[0].unsqueeze(1)).any(-1)
        at = target.gather(-1, ids)
        if counts is not None:
            at = at.masked_fill(~counts, -torch.inf)
        outside = mass_outside(target, ids)
        log_z = outside.including(at).log()
        support = Support(at - log_z, (outside.log() - log_z).squeeze(-1))
        return ids, counts, Support(*(part.to(piece.logits.dtype) for part in support))

    def _projector(self, source: Source) -> Projector:
        if source not in self.projectors:
            raise ValueError(f"the plan needs the hidden states and the head of {source}")
        return self.projectors[source]


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
