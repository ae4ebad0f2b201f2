"""Any policy on any view of a rollout: hidden states, scores and projections, on top of rollouts from views.

A policy is the student, its teacher, or the student at another time (`teachers.py`): the student's own model with other
weights in it while that policy acts. However a model is wrapped, sharded or adapted, it is so here and nowhere else.
What the scores are for is `trainer.py`'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, TrainerCallback
from trl.trainer.utils import maybe_gather_lm_head_ctx

from dopd_vl.core import Projection, Source, TokenScores, divergence_of, score_tokens
from dopd_vl.models import backbone_of, to_device
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import Pair, Requirements
from dopd_vl.training.prompt_sharing import can_go_on, sibling_hidden_states, siblings_of
from dopd_vl.training.student_copies import KeepTimes, StudentTimes, check_copies
from dopd_vl.training.trainer import ViewTrainer
from dopd_vl.training.vision_features import SharedFeatures, shared_vision_features
from dopd_vl.views import View
from dopd_vl.views.rollouts import SIBLING_VIEW, pad_responses


class PolicyTrainer(ViewTrainer):
    """Scores what the objective's policies make of the rollouts. The arguments are `DopdTrainer`'s."""

    objective: Objective

    def __init__(
        self,
        model: str | PreTrainedModel,
        objective: Objective,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        self.objective = objective
        self.requirements = Requirements.of(objective)
        # First of all callbacks: before whatever marks a checkpoint as whole.
        super().__init__(model, callbacks=[KeepTimes(self), *(callbacks or [])], **kwargs)
        policies = {source.policy for source in objective.sources()}
        for policy in policies | {"student"}:
            _refuse_scaled_logits(self._policy(policy)[1].config, policy)
        unwrapped = self.accelerator.unwrap_model(self.model)
        check_copies(policies, hasattr(unwrapped, "disable_adapter"), self._dist.zero_stage)
        self.times = StudentTimes(unwrapped, policies, self.requirements.average_rate)
        self._features: dict[int, SharedFeatures] = {}

    @contextmanager
    def _shared_features(self) -> Iterator[None]:
        """While it lasts, each model looks at an image once; nothing may be learnt meanwhile."""
        # Of sharded models every rank must run every module, whatever it has seen already.
        models = [] if self.is_fsdp_enabled or self.is_deepspeed_enabled else [self.model, self.teacher_model]
        with ExitStack() as stack:
            for model in models:
                if model is not None:
                    self._features[id(model)] = stack.enter_context(shared_vision_features(model))
            try:
                yield
            finally:
                self._features.clear()

    def _score(self, source: Source, views: Sequence[View], responses: list[list[int]], mask: Tensor) -> Scored:
        """Scores and hidden states of a policy as a constant (dropout off), length-sorted micro-batch after another."""
        wrapped, unwrapped = self._policy(source.policy)
        top_k = max(self.args.logged_top_k, getattr(self.objective, "top_k", 0))
        store = "cpu" if self.args.offload_scores else None
        shared = self._shares_prompts(source.policy) and source.view != SIBLING_VIEW

        def forward(
            some_views: list[View], some_responses: list[list[int]], some_mask: Tensor
        ) -> tuple[Tensor, TokenScores]:
            hidden = self._hidden_states(unwrapped, some_views, some_responses, shared)
            ids, _ = pad_responses(some_responses, self._tokenizer.pad_token_id)
            projection = self._projection(source, hidden)
            chunk_size = self.args.logits_chunk_size
            ids, some_mask = ids.to(hidden.device), some_mask.to(hidden.device)
            scores = score_tokens(projection, ids, some_mask, top_k, chunk_size, store)
            return hidden if store is None else hidden.to(store), scores

        def redirected(
            some_views: list[View], some_responses: list[list[int]], some_mask: Tensor
        ) -> tuple[Tensor, TokenScores]:
            # Through the wrapper's own forward pass, so that a sharded policy's weights are whole in it, head and all.
            with self.compute_loss_context_manager():  # the same precision as in learning
                return self._forward_redirection(wrapped, unwrapped, forward, some_views, some_responses, some_mask)

        was_training = wrapped.training
        wrapped.eval()
        size = self.args.scoring_batch_size or self.args.per_device_train_batch_size
        try:
            with ExitStack() as stack:
                if source.policy not in ("student", "teacher"):
                    stack.enter_context(self.times.acting(source.policy))
                    if id(self.model) in self._features:
                        stack.enter_context(self._features[id(self.model)].of(source.policy))
                return score_views(redirected, views, responses, size, mask)
        finally:
            wrapped.train(was_training)

    def _shares_prompts(self, policy: str) -> bool:
        several = self.args.share_prompts and self.args.num_generations > 1
        return several and can_go_on(self._policy(policy)[1].config)

    @torch.no_grad()
    def _measure(self, pair: Pair, scored: Mapping[Source, Scored], mask: Tensor) -> Tensor:
        """A divergence between two policies over the whole vocabulary, `[B, N]`."""
        with self.compute_loss_context_manager(), self._whole_heads(pair.student, pair.target, in_forward=False):
            student, target = (
                self._projection(source, scored[source].hidden.to(mask.device), policy_acts=False)
                for source in (pair.student, pair.target)
            )
            return divergence_of(pair.divergence, student, target, mask, self.args.logits_chunk_size)

    def _hidden_states(
        self, unwrapped: PreTrainedModel, views: Sequence[View], responses: Sequence[Sequence[int]], shared: bool
    ) -> Tensor:
        """`[b, n, H]`, n the longest response; `shared`: siblings' prompts are read once."""
        device, pad = self.accelerator.device, self._tokenizer.pad_token_id
        if shared:
            different, rows = siblings_of(views)
            prompts = to_device(self.views.collate(different, [[] for _ in different], pad), device)
            ids, mask = (tensor.to(device) for tensor in pad_responses(responses, pad))
            return sibling_hidden_states(backbone_of(unwrapped), prompts, torch.tensor(rows, device=device), ids, mask)
        inputs = to_device(self.views.collate(views, responses, pad), device)
        length = max(len(ids) for ids in responses)
        return self._get_last_hidden_state(unwrapped, logits_to_keep=length, **inputs)

    @contextmanager
    def _whole_heads(self, *sources: Source, in_forward: bool = True) -> Iterator[None]:
        """While it lasts, the heads of these policies are not sharded (FSDP2, ZeRO-3).

        `in_forward`: within the student's own forward pass, where its weights are whole already.
        """
        with ExitStack() as stack:
            for policy in dict.fromkeys(source.policy for source in sources):
                wrapped, unwrapped = self._policy(policy)
                head: Any = unwrapped.get_output_embeddings()
                if isinstance(wrapped, FSDPModule):
                    if policy == "teacher" or not in_forward:
                        # Accelerate shards the head apart from the rest; older releases shard it with the whole.
                        part = head if isinstance(head, FSDPModule) else wrapped
                        part.unshard()
                        stack.callback(part.reshard)
                else:
                    bias: Any = getattr(head, "bias", None)
                    stack.enter_context(maybe_gather_lm_head_ctx(head.weight, bias))
            yield

    def _projection(
        self, source: Source, hidden: Tensor, constant: bool = True, policy_acts: bool = True
    ) -> Projection:
        """The policy's head on hidden states. `policy_acts`: the student's model has that policy's weights now."""
        head = self._policy(source.policy)[1].get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if not policy_acts:
            weight = self.times.head(source.policy, weight)
            bias = None if bias is None else self.times.head(source.policy, bias)
        if constant:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return Projection(hidden, weight, bias)

    def _policy(self, policy: str) -> tuple[torch.nn.Module, PreTrainedModel]:
        """The wrapped and the bare model of a policy."""
        if policy != "teacher":
            wrapped = self.model_wrapped
        elif self.teacher_model is None:
            raise ValueError(f"objective {self.objective.name!r} needs a teacher_model")
        else:
            wrapped = self.teacher_model
        return wrapped, self.accelerator.unwrap_model(wrapped)


def _refuse_scaled_logits(config: Any, policy: str) -> None:
    """The losses read logits as `hidden @ head.T`: a family that scales or caps them would be taught wrongly."""
    text_config = config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"):
        value = getattr(text_config, name, None)
        if value is not None and value != 1:
            raise ValueError(f"the {policy} scales its logits ({name}={value}), which is not supported")


Forward = Callable[[list[View], list[list[int]], Tensor], tuple[Tensor, TokenScores]]
"""Views, responses and the tokens to score, bool `[b, n]`, of a micro-batch -> hidden states `[b, n, H]` that predict
the response tokens, n the longest, and their scores."""


class Scored(NamedTuple):
    """One policy on B rollouts of N response tokens at most."""

    hidden: Tensor
    """`[B, N, H]`, zero beyond a micro-batch's longest response"""
    scores: TokenScores


@torch.no_grad()
def score_views(
    forward: Forward, views: Sequence[View], responses: Sequence[list[int]], batch_size: int, token_mask: Tensor
) -> Scored:
    """Score all rollouts, `batch_size` at a time.

    Sequences of like length share a forward pass, so that little of it is padding, and siblings do, so that they can
    share their prompt.

    Args:
        token_mask: `[B, N]`, the tokens to score; false also for those of an example that takes no part.
    """
    _, prompt = siblings_of(views)
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
        for name, values in vars(some).items():
            whole: Tensor = getattr(scores, name)
            where = taking_part.to(whole.device)
            there = whole[index.to(whole.device), : values.shape[1]]
            there[where] = values[where]
            whole[index.to(whole.device), : values.shape[1]] = there
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
