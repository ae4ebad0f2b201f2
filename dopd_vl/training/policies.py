"""What each policy makes of the rollouts: hidden states, scores and projections of any policy on any view.

A policy is the student, its teacher, or the student at another time (`student_copies.py`): the student's own model with
other weights in it while that policy acts. `Policies` is handed models (`sharding.py`) and knows of no trainer; what
the scores are for is the trainer's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dopd_vl.common.errors import UserError
from dopd_vl.core import Projection, Source, TokenScores, divergence_of, score_tokens
from dopd_vl.models import backbone_of, leave_out_router_logits, refuse_scaled_logits, to_device
from dopd_vl.objectives.base import Pair
from dopd_vl.served.protocols import Question
from dopd_vl.served.teacher import Asked, token_scores
from dopd_vl.training.freezing import learns_from_text
from dopd_vl.training.prompt_sharing import can_go_on, hidden_states_from_shared_prompts, prompts_of
from dopd_vl.training.sharding import Models
from dopd_vl.training.student_copies import StudentCopies
from dopd_vl.training.teachers import DEFAULT, TEACHER, Teachers, is_teacher, truncated
from dopd_vl.training.vision_features import SharedFeatures, shared_vision_features
from dopd_vl.views import View, ViewProcessor
from dopd_vl.views.rollouts import ROLLOUT_VIEWS, pad_responses

Forward = Callable[[list[View], list[list[int]], Tensor], tuple[Tensor, TokenScores]]
"""Views, responses and the tokens to score, bool `[b, n]`, of a micro-batch -> hidden states `[b, n, H]` that predict
the response tokens, n the longest, and their scores."""


class Scored(NamedTuple):
    """One policy on B rollouts of N response tokens at most."""

    hidden: Tensor | None
    """`[B, N, H]`, zero beyond a micro-batch's longest response; None of a served teacher and of several together"""
    scores: TokenScores
    rows: Tensor | None = None
    """`[B]` int64, places in the step, where it scored a part of its rollouts alone"""


class Policies:
    """Scores rollouts by the policies that an objective names.

    Args:
        models: the student's model and those of teachers in this process.
        views: the processor that made the views.
        copies: the student at other times.
        batch_size: sequences a scoring pass.
        teachers: who teaches which example; default: one teacher in this process.
        top_k: entries kept a token.
        chunk_size: response tokens projected to the vocabulary at a time; default: by device, `chunk_size_for`.
        share_prompts: read a prompt once for all of its rollouts, where a model's cache allows it.
        store: where the kept entries and hidden states lie until they are learned from, e.g. "cpu"; default: where
            they were computed.

    Raises:
        ValueError: a model scales or caps its logits, which would be taught wrongly.
    """

    def __init__(
        self,
        models: Models,
        views: ViewProcessor,
        copies: StudentCopies,
        batch_size: int,
        top_k: int = 128,
        chunk_size: int | None = None,
        share_prompts: bool = True,
        store: str | None = None,
        teachers: Teachers | None = None,
    ):
        self.models, self.views, self.copies, self.teachers = models, views, copies, teachers or Teachers()
        self.batch_size, self.top_k, self.chunk_size, self.store = batch_size, top_k, chunk_size, store
        self._share_prompts = share_prompts
        self._features: dict[int, SharedFeatures] = {}
        for policy in self._local():
            refuse_scaled_logits(models.bare(policy).config, TEACHER if policy == DEFAULT else policy)
            leave_out_router_logits(models.bare(policy).config)

    def _local(self) -> list[str]:
        """The policies that are asked for and scored in this process."""
        copies = self.copies.policies
        teachers = self.teachers.local if TEACHER in copies else []
        return list(dict.fromkeys(["student", *sorted(copies - {TEACHER}), *teachers]))

    def score_all(
        self,
        asked: Mapping[Source, Sequence[View]],
        responses: Sequence[list[int]],
        mask: Tensor,
        owner: Tensor | None = None,
        examples: Sequence[str] = (),
    ) -> tuple[dict[Source, Scored], float]:
        """What every policy makes of B rollouts, and the seconds that served teachers were waited for.

        Served teachers are asked first, for all rollouts at once, and answer while the others score. Beside the teacher
        as a whole, each of several stands in the result as a policy of its own.

        Args:
            asked: a policy and its view -> what it sees of each rollout.
            mask: `[B, N]` bool, the tokens to score.
            owner: `[B]`, the place of each rollout's teacher in `Teachers.policies`; needed where there are several.
            examples: the rollouts' ids, for errors.

        Raises:
            UserError: a served teacher refuses, is gone, or answers something else than what it was asked.
        """
        if self.teachers.is_plain:
            return {source: self.score(source, views, responses, mask) for source, views in asked.items()}, 0.0
        owner = torch.zeros(len(responses), dtype=torch.long) if owner is None else owner.cpu()
        named = list(examples) or [str(b) for b in range(len(responses))]
        of_teachers = {source: views for source, views in asked.items() if is_teacher(source.policy)}
        waiting: dict[tuple[Source, str], tuple[list[int], Asked]] = {}
        scored: dict[Source, Scored] = {}
        waited = 0.0
        try:
            for source, views in of_teachers.items():
                for place, policy in enumerate(self.teachers.policies):
                    if policy in self.teachers.served:
                        rows = [b for b in (owner == place).nonzero().flatten().tolist() if mask[b].any()]
                        questions = [(named[b], self._question(views[b], responses[b], mask[b])) for b in rows]
                        waiting[source, policy] = rows, self.teachers.served[policy].ask(questions)
            parts: dict[Source, list[tuple[list[int], TokenScores]]] = {source: [] for source in of_teachers}
            for source, views in asked.items():
                if source not in of_teachers:
                    scored[source] = self.score(source, views, responses, mask)
                    continue
                for place, policy in enumerate(self.teachers.policies):
                    if policy not in self.teachers.served:
                        own = Source(policy, source.view)
                        rows = (owner == place).nonzero().flatten().tolist()
                        scored[own] = self._score_some(own, views, responses, mask, rows)
                        parts[source].append((rows, scored[own].scores))
            for (source, policy), (rows, sent) in waiting.items():
                answers, seconds = sent.answers()
                waited += seconds
                top_k, vocabulary = self.teachers.served[policy].top_k, self._vocabulary
                parts[source].append((rows, token_scores(answers, mask.shape[1], top_k, vocabulary)))
        finally:
            for _, sent in waiting.values():
                sent.drop()
        for source in of_teachers:
            scored[source] = Scored(None, self._put_together(parts[source], mask))
        return scored, waited

    def _score_some(
        self, source: Source, views: Sequence[View], responses: Sequence[list[int]], mask: Tensor, rows: list[int]
    ) -> Scored:
        """A policy on some of the rollouts."""
        most = len(rows)
        if self.models.sharded(source.policy):  # every rank must run it as often as any other
            count = torch.tensor([most], device=self.models.device)
            dist.all_reduce(count, op=dist.ReduceOp.MAX)
            most = int(count)
        if most == 0:
            model = self.models.bare(source.policy)
            size, dtype = model.config.get_text_config().hidden_size, self.models.compute_dtype or model.dtype
            nothing = token_scores([], mask.shape[1], min(self.top_k, self._vocabulary), self._vocabulary)
            return Scored(torch.zeros(0, mask.shape[1], size, dtype=dtype), nothing, torch.zeros(0, dtype=torch.long))
        padded = [*rows, *[rows[0] if rows else 0] * (most - len(rows))]
        some = mask[padded].clone()
        some[len(rows) :] = False
        result = self.score(source, [views[b] for b in padded], [responses[b] for b in padded], some)
        hidden = None if result.hidden is None else result.hidden[: len(rows)]
        return Scored(
            hidden, result.scores.map(lambda tensor: tensor[: len(rows)]), torch.tensor(rows, dtype=torch.long)
        )

    def _put_together(self, parts: list[tuple[list[int], TokenScores]], mask: Tensor) -> TokenScores:
        """The scores of all rollouts, from those of each teacher on its own; entries as many as all of them have."""
        device = mask.device
        known = [(rows, scores) for rows, scores in parts if rows]
        top_k = min(scores.top_k_ids.shape[-1] for _, scores in parts)
        store = device if self.store is None else self.store
        whole: TokenScores | None = None
        for rows, scores in known:
            some = truncated(scores, top_k).map(lambda tensor: tensor.to(device))
            some = replace(some, top_k_ids=some.top_k_ids.to(store), top_k_logp=some.top_k_logp.to(store))
            whole = _empty_like(some, *mask.shape) if whole is None else whole
            for name, values in vars(some).items():
                tensor: Tensor = getattr(whole, name)
                tensor[torch.tensor(rows, device=tensor.device)] = values.to(tensor.dtype)
        if whole is None:  # no rollout of this rank has a token
            whole = _empty_like(token_scores([], 0, top_k, self._vocabulary), *mask.shape).map(lambda t: t.to(device))
        return whole

    def _question(self, view: View, response: list[int], mask: Tensor) -> Question:
        ids = response[: int(mask.nonzero().max()) + 1]
        return Question(view.prompt_ids, ids, view.images, getattr(self.views.config, "image_token_id", None))

    @property
    def _vocabulary(self) -> int:
        return int(self.views.config.get_text_config().vocab_size)

    def score(self, source: Source, views: Sequence[View], responses: Sequence[list[int]], mask: Tensor) -> Scored:
        """What a policy, as a constant and without dropout, makes of B rollouts.

        Args:
            views: what it sees of each.
            responses: the rollouts' token ids.
            mask: `[B, N]` bool, the tokens to score.
        """
        policy = source.policy
        if any(view.images for view in views) and not hasattr(self.models.bare(policy).config, "vision_config"):
            raise UserError(f"{policy} reads text only, and was shown an image")
        shared = self.shares_prompts(policy) and source.view not in ROLLOUT_VIEWS

        def forward(
            some_views: list[View], some_responses: list[list[int]], some_mask: Tensor
        ) -> tuple[Tensor, TokenScores]:
            hidden = self.hidden_states(policy, some_views, some_responses, shared)
            hidden = hidden.to(self.models.compute_dtype or hidden.dtype)  # as the head will read them
            ids, _ = pad_responses(some_responses, self._pad)
            projection = self.projection(source, hidden)
            ids, some_mask = ids.to(hidden.device), some_mask.to(hidden.device)
            scores = score_tokens(projection, ids, some_mask, self.top_k, self.chunk_size, self.store)
            return hidden if self.store is None else hidden.to(self.store), scores

        def run(
            some_views: list[View], some_responses: list[list[int]], some_mask: Tensor
        ) -> tuple[Tensor, TokenScores]:
            return self.models.run(policy, partial(forward, some_views, some_responses, some_mask))

        wrapped = self.models.wrapped(policy)
        was_training = wrapped.training
        wrapped.eval()
        try:
            with self._acting(policy):
                return score_views(run, views, responses, self.batch_size, mask)
        finally:
            wrapped.train(was_training)

    @torch.no_grad()
    def measure(self, pair: Pair, scored: Mapping[Source, Scored], mask: Tensor) -> Tensor:
        """A divergence between two policies over the whole vocabulary, `[B, N]`."""
        policies = (pair.student.policy, pair.target.policy)
        with self.models.whole_heads(policies, in_forward=False):
            student, target = (
                self.projection(source, self._whole_hidden(scored, source, mask), acting=False)
                for source in (pair.student, pair.target)
            )
            return divergence_of(pair.divergence, student, target, mask, self.chunk_size)

    @staticmethod
    def _whole_hidden(scored: Mapping[Source, Scored], source: Source, mask: Tensor) -> Tensor:
        hidden = scored[source].hidden
        if hidden is None:
            raise ValueError(f"the hidden states of {source} are not those of one model in this process")
        return hidden.to(mask.device)

    def hidden_states(
        self, policy: str, views: Sequence[View], responses: Sequence[Sequence[int]], shared: bool = False
    ) -> Tensor:
        """`[b, n, H]` that predict the response tokens, n the longest response; differentiable.

        Args:
            shared: Read equal prompts once.
        """
        without_images = self.views.reads_images and all(v.pixel_values is None for v in views)
        if without_images and (self.models.sharded(policy) or self._learns_by_images_alone()):
            # Other ranks may see images, and wait for this one's shards of the tower in every pass, and for their
            # gradients: a picture that nothing is learnt of lets it take part. And beside a frozen language model
            # there would be nothing to take a gradient of.
            with_picture = [*views, self.views.picture], [*responses, [self._pad]]
            return self.hidden_states(policy, *with_picture, shared)[:-1]
        backbone, device = backbone_of(self.models.bare(policy)), self.models.device
        if shared:
            different, rows = prompts_of(views)
            prompts = to_device(self.views.collate(different, [[] for _ in different], self._pad), device)
            ids, mask = (tensor.to(device) for tensor in pad_responses(responses, self._pad))
            places = torch.tensor(rows, device=device)
            with self.models.precision():
                return hidden_states_from_shared_prompts(backbone, prompts, places, ids, mask)
        inputs: dict[str, Any] = to_device(self.views.collate(views, responses, self._pad), device)
        longest = max(len(ids) for ids in responses)
        with self.models.precision():
            return backbone(**inputs, use_cache=False).last_hidden_state[:, :-1][:, -longest:]

    def projection(self, source: Source, hidden: Tensor, constant: bool = True, acting: bool = True) -> Projection:
        """The policy's head on hidden states.

        Args:
            constant: Without a gradient in the head.
            acting: Whether the student's model has that policy's weights now.
        """
        head: Any = self.models.bare(source.policy).get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if not acting and not is_teacher(source.policy):
            weight, bias = self.copies.head(source.policy)
        if constant:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return Projection(hidden, weight, bias, self.models.compute_dtype)

    def shares_prompts(self, policy: str) -> bool:
        """Whether a prompt is read once for all of its rollouts."""
        return self._share_prompts and can_go_on(self.models.bare(policy).config)

    def _learns_by_images_alone(self) -> bool:
        return torch.is_grad_enabled() and not learns_from_text(self.models.bare("student"))

    @contextmanager
    def shared_features(self) -> Iterator[None]:
        """While it lasts, each model looks at an image once; nothing may be learnt meanwhile."""
        # Of sharded models every rank must run every module, whatever it has seen already.
        whole = [self.models.bare(policy) for policy in self._local() if not self.models.sharded(policy)]
        models = {id(model): model for model in whole}
        with ExitStack() as stack:
            for number, model in models.items():
                self._features[number] = stack.enter_context(shared_vision_features(model))
            try:
                yield
            finally:
                self._features.clear()

    @contextmanager
    def _acting(self, policy: str) -> Iterator[None]:
        """While it lasts, the student's model is this policy."""
        with ExitStack() as stack:
            if policy != "student" and not is_teacher(policy):
                stack.enter_context(self.copies.acting(policy))
                features = self._features.get(id(self.models.bare("student")))
                if features is not None:
                    stack.enter_context(features.of(policy))
            yield

    @property
    def _pad(self) -> int:
        return self.views.tokenizer.pad_token_id


@torch.no_grad()
def score_views(
    forward: Forward, views: Sequence[View], responses: Sequence[list[int]], batch_size: int, token_mask: Tensor
) -> Scored:
    """Score all rollouts, `batch_size` at a time.

    Sequences of like length share a forward pass, so that little of it is padding, and rollouts of one prompt do, so
    that they can share it.

    Args:
        token_mask: `[B, N]`, the tokens to score; false also for those of an example that takes no part.
    """
    _, prompt = prompts_of(views)
    longest = [0] * len(views)
    for b, response in enumerate(responses):
        longest[prompt[b]] = max(longest[prompt[b]], len(response))

    def by_length(b: int) -> tuple[int, int, int]:
        return len(views[b].prompt_ids) + longest[prompt[b]], prompt[b], len(responses[b])

    order = sorted(range(len(views)), key=by_length)
    hidden: Tensor | None = None
    scores: TokenScores | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(responses[b]) for b in rows)
        taking_part = token_mask[torch.tensor(rows, device=token_mask.device), :width]
        some_hidden, some = forward([views[b] for b in rows], [responses[b] for b in rows], taking_part)
        if hidden is None or scores is None:
            empty = _empty_like(some, *token_mask.shape)
            hidden = some_hidden.new_zeros(*token_mask.shape, some_hidden.shape[-1])
            scores = empty
        index = torch.tensor(rows, device=hidden.device)
        hidden[index, : some_hidden.shape[1]] = some_hidden
        for name, values in vars(some).items():  # where masked, already what `_empty_like` has there
            whole: Tensor = getattr(scores, name)
            whole[index.to(whole.device), : values.shape[1]] = values
    if hidden is None or scores is None:
        raise ValueError("no sequence to score")
    return Scored(hidden, scores)


def _empty_like(scores: TokenScores, sequences: int, length: int) -> TokenScores:
    """Scores `[B, N, ...]` of nothing but masked tokens."""
    nothing = {"rest_logp": -torch.inf, "top_k_logp": -torch.inf, "tail_logp": -torch.inf}
    filled = {
        name: values.new_full((sequences, length, *values.shape[2:]), nothing.get(name, 0))
        for name, values in vars(scores).items()
    }
    return TokenScores(**filled)
