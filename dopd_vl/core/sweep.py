"""One chunk of a plan: from the student's logits of some response tokens to their losses and the logits' gradient."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dopd_vl.core.closed_forms import SparseResult, Support, dense_divergence, sparse_divergence
from dopd_vl.core.divergences import log_softmax
from dopd_vl.core.plan import Plan, PolicyGradient, Source, Term
from dopd_vl.core.projection import Projection, TokenScores, mass_of, top_k_of

Index = tuple[Tensor, ...]


class Sparse(NamedTuple):
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


class Chunk:
    """R response tokens and the student's logits of them, `[R, V]` in fp32 or fp64, which the work overwrites.

    After `teach`: `values`, the weighted losses; `entropy` of the student; `kept_mass`, what it gives to the support of
    a Top-K term, NaN where a row has none: `[R]` each.
    """

    def __init__(self, logits: Tensor, rows: Index, ids: Tensor):
        self.logits, self.rows, self.ids = logits, rows, ids

    def teach(
        self,
        plan: Plan,
        sources: Mapping[Source, Projection],
        scores: Mapping[Source, TokenScores],
        factor: Tensor,
    ) -> Tensor:
        """The gradient of `sum(values * factor)` in the logits, `[R, V]`; `values` and the others are set."""
        z = self.logits
        self.values = z.new_zeros(len(z))
        self.kept_mass = z.new_full((len(z),), torch.nan)
        sparse: list[Sparse] = []
        dense: list[tuple[Term, Tensor, Tensor]] = []
        for term in plan.terms:
            weight = term.weight[self.rows].to(z.dtype)
            chosen = weight.nonzero().squeeze(-1)
            if not len(chosen):
                continue
            if isinstance(term, Term) and term.support == "full":
                dense.append((term, chosen, weight[chosen]))
            else:
                sparse.append(self._look_up(term, chosen, weight[chosen], sources, scores))

        largest = z.amax(-1, keepdim=True)
        gradient: Tensor | None = None
        if dense:
            total, weighted = mass_of(z, largest)
            gradient = self._dense(dense, largest + total.log(), sources, factor, last=not sparse)
        if sparse or gradient is None:
            total, weighted = mass_of(z, largest, keep=True)
        log_z = largest + total.log()
        self.entropy = (total.log() - weighted / total).squeeze(-1)
        if not sparse and gradient is not None:
            return gradient
        mass = z
        everywhere = torch.zeros_like(self.values)  # factor of the student's probabilities in the gradient
        terms_of_row = torch.zeros_like(self.values, dtype=torch.long)
        parts = []
        for item in sparse:
            result = self._sparse(item, mass, total, log_z)
            self.values[item.rows] += item.weight * result.value
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
                self.kept_mass[item.rows] = probability.sum(-1)
            place = (item.rows.unsqueeze(-1), item.ids)
            mass[place] = mass[place].masked_fill(alone, 0.0)
            added = torch.where(alone, there, there - outside.unsqueeze(-1) * probability)
            mass.index_put_(place, added, accumulate=True)
        return mass if gradient is None else mass.add_(gradient)

    def _dense(
        self,
        terms: Sequence[tuple[Term, Tensor, Tensor]],
        log_z: Tensor,
        sources: Mapping[Source, Projection],
        factor: Tensor,
        last: bool,
    ) -> Tensor:
        """`last`: no other term needs the logits, which the last term may then overwrite."""
        gradient: Tensor | None = None
        for number, (term, chosen, weight) in enumerate(terms, start=1):
            every_row = len(chosen) == len(self.logits)
            if every_row and last and number == len(terms):
                logp = self.logits.sub_(log_z)
            else:
                logp = self.logits - log_z if every_row else self.logits[chosen] - log_z[chosen]
            target_logp = log_softmax(_projection(sources, term.source).logits(self._index(chosen)))
            values, slope = dense_divergence(term.divergence, logp, target_logp.to(logp.dtype))
            self.values[chosen] += weight * values
            slope.mul_((weight * factor[chosen].to(weight.dtype)).unsqueeze(-1))
            if gradient is None:
                gradient = slope if every_row else torch.zeros_like(self.logits).index_copy_(0, chosen, slope)
            else:
                gradient.index_add_(0, chosen, slope)
        assert gradient is not None
        return gradient

    def _sparse(self, item: "Sparse", mass: Tensor, total: Tensor, log_z: Tensor) -> SparseResult:
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

    def _look_up(
        self,
        term: Term | PolicyGradient,
        chosen: Tensor,
        weight: Tensor,
        sources: Mapping[Source, Projection],
        scores: Mapping[Source, TokenScores],
    ) -> "Sparse":
        if isinstance(term, PolicyGradient):
            ids = self.ids[chosen].unsqueeze(-1)
            target = Support(torch.zeros_like(weight).unsqueeze(-1), weight)  # there is none
            return Sparse(term, chosen, weight, ids, self.logits[chosen.unsqueeze(-1), ids], target)
        known = scores.get(term.source)
        if known is not None and scores_suffice(term, known):
            ids, target = self._known_support(term, chosen, known)
            return Sparse(term, chosen, weight, ids, self.logits[chosen.unsqueeze(-1), ids], target)
        ids, counts, target = self._support(term, chosen, sources)
        at = self.logits[chosen.unsqueeze(-1), ids].masked_fill(~counts, -torch.inf)
        return Sparse(term, chosen, weight, ids, at, target)

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
        self, term: Term, chosen: Tensor, sources: Mapping[Source, Projection]
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


class Gradients:
    """Sums, over chunks, the gradients of hidden states `[B, N, H]`, head `[V, H]` and bias `[V]`; the latter two in
    fp32 at least: in bf16 their sum would be biased towards the first chunks."""

    def __init__(self, student: Projection, needs: Sequence[bool]):
        self.student = student
        hidden, weight, bias = student
        self.hidden = torch.zeros_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=_wide(weight)) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=_wide(bias)) if bias is not None and needs[2] else None

    def add(self, rows: Index, gradient: Tensor) -> None:
        """Add a chunk's: `gradient[R, V]` in the logits, in the dtype that they were projected in."""
        hidden, weight, _ = self.student
        with torch.autocast(hidden.device.type, enabled=False):
            if self.hidden is not None:
                self.hidden[rows] = (gradient @ weight.to(gradient.dtype)).to(hidden.dtype)
            if self.weight is not None:
                factor = hidden[rows].to(gradient.dtype)
                if self.weight.dtype == gradient.dtype:
                    self.weight.addmm_(gradient.T, factor)
                else:
                    self.weight += gradient.T @ factor
            if self.bias is not None:
                self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def result(self) -> list[Tensor | None]:
        """In the dtypes of the tensors that they are of."""
        pairs = zip((self.hidden, self.weight, self.bias), self.student, strict=True)
        return [None if g is None or of is None else g.to(of.dtype) for g, of in pairs]


def scores_suffice(term: Term, scores: TokenScores) -> bool:
    """Whether a term finds in the scores of its policy all it needs of it."""
    if term.support == "sampled":
        return True
    return term.support == "top_k" and term.top_k_source == "target" and term.top_k <= scores.top_k_ids.shape[-1]


def _projection(sources: Mapping[Source, Projection], source: Source) -> Projection:
    if source not in sources:
        raise ValueError(f"the plan needs the hidden states and the head of {source}")
    return sources[source]


def _wide(tensor: Tensor) -> Any:
    return torch.promote_types(tensor.dtype, torch.float32)
