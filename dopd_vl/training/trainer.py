"""The trainer: one optimizer step is views, rollouts, scores, a plan, and then learning by it.

It stands on two layers, each of which knows nothing of what is above it:

    view_trainer.py     TRL's distillation trainer on privileged data: rollouts from views, evaluation
    policy_trainer.py   any policy's scores of these rollouts

Overridden seams of TRL's, each pinned by a test:

    _generate_and_score_completions    one optimizer step: views, rollouts, scores, plan
    _compute_loss                      one slice of it: the student's forward pass against the plan
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset, Sampler
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import DistillationTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from dopd_vl.core import Plan, TokenScores, fused_plan_loss, item_count, rows_to_keep, token_scale
from dopd_vl.evaluation.accuracy import predict, summarise
from dopd_vl.models import forget_image_positions, image_token_ids
from dopd_vl.objectives import OBJECTIVES, Decision, Objective, Scores
from dopd_vl.objectives.base import POLICIES
from dopd_vl.objectives.common import PLAIN_STUDENT
from dopd_vl.run_folder.kept_rollouts import KeptRollout, KeptSlice, keep_rollouts
from dopd_vl.training.arguments import DopdConfig
from dopd_vl.training.checks import check_requirements
from dopd_vl.training.metrics import TokenSums, add_rollouts, is_correct, token_metrics
from dopd_vl.training.policies import PolicyTrainer
from dopd_vl.views import View, ViewProcessor, processor_for
from dopd_vl.views.rollouts import (
    SIBLING_VIEW,
    Refusal,
    ViewRenderer,
    pad_responses,
    render_batch,
    render_siblings,
    siblings_shown,
)


class DopdTrainer(PolicyTrainer):
    """Distils a teacher into a student on the student's own rollouts, by any objective.

    Args:
        model: the student, as TRL takes it: a folder, a hub id or a model.
        teacher_model: the larger, frozen teacher, likewise. Its vocabulary must be the student's.
        args: a `DopdConfig`.
        train_dataset: a privileged data set (columns `id`, `prompt`, `images`, `answer`, `task`, `privileged`, ...).
        eval_dataset: another, scored by its tasks' verifiers at each evaluation.
        objective: what is taught; default `Dopd()`. Any object with `sources` and `decide`.
        view_processor: renders examples for these models; default: chosen by the student's own config.

    Everything else is passed to `trl.DistillationTrainer`.
    """

    _tag_names = ["trl", "distillation", "dopd"]  # noqa: RUF012 - TRL's own form
    _name = "DOPD"

    def __init__(
        self,
        model: str | PreTrainedModel,
        teacher_model: str | PreTrainedModel | None = None,
        args: DopdConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        objective: Objective | None = None,
        view_processor: ViewProcessor | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            model,
            objective if objective is not None else OBJECTIVES["dopd"](),
            callbacks,
            teacher_model=teacher_model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            view_processor=view_processor,
            **kwargs,
        )
        args = self.args
        # Where no larger model teaches, the student that does is the teacher, and sees what a teacher is to see.
        taught = any(source.policy == "teacher" for source in self.objective.sources())
        of_student = args.student_variant if taught else args.teacher_variant
        variants = dict.fromkeys(POLICIES, of_student) | {"teacher": args.teacher_variant}
        self.renderer = ViewRenderer(self.views, variants, args.learner_variant)
        check_requirements(self.objective, args.num_generations, self.views.reads_images, train_dataset)
        self.refusals: list[Refusal] = []
        self.refused_before = 0
        """refusals of this process before the checkpoint that it goes on from"""
        self.kept_rollouts: dict[int, KeptRollout] = {}
        self._decision: Decision | None = None
        self._sums = TokenSums()

    @property
    def refused(self) -> int:
        """Refusals of this process since the run began."""
        return self.refused_before + len(self.refusals)

    # ---- one optimizer step: views, rollouts, scores, plan ----------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self._shared_features():
            return self._roll_out_and_score(inputs)

    def _roll_out_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        siblings = self.args.num_generations
        sources = self.objective.sources()
        fixed = [source for source in sources if source.view != SIBLING_VIEW]
        rendered = render_batch(self.renderer, inputs, [PLAIN_STUDENT, *fixed], siblings)
        self.refusals += rendered.refusals
        plain_views = rendered.views[PLAIN_STUDENT]
        forget_image_positions(self.accelerator.unwrap_model(self.model))
        _, responses, _, _, _ = self._generate(plain_views)
        device = self.accelerator.device
        response_ids, response_mask = (t.to(device) for t in pad_responses(responses, self._tokenizer.pad_token_id))
        response_mask &= rendered.usable.to(device)[:, None]

        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        verdicts = [is_correct(example, text) for example, text in zip(inputs, texts, strict=True)]
        usable = response_mask.any(dim=-1).tolist()
        shown = siblings_shown([v if u else None for v, u in zip(verdicts, usable, strict=True)], siblings)
        views = dict(rendered.views)
        if len(fixed) < len(sources):
            by_sibling, shown = render_siblings(self.renderer, inputs, plain_views, texts, shown)
            views |= {source: by_sibling for source in sources if source.view == SIBLING_VIEW}

        # One process keeps some rollouts to look at, with their scores.
        most = self.args.rollouts_to_keep if self.accelerator.is_main_process else 0
        chosen = [row for row, takes_part in enumerate(usable) if takes_part][:most]
        token_mask = response_mask
        if not self.requirements.needs_scores:
            token_mask = torch.zeros_like(response_mask)
            token_mask[chosen] = response_mask[chosen]
        scored = {source: self._score(source, views[source], responses, token_mask) for source in sources}
        scores = Scores(
            policies={source: result.scores for source, result in scored.items()},
            response_ids=response_ids,
            response_mask=response_mask,
            group=torch.arange(len(inputs), device=device) // siblings,
            correct=torch.tensor([math.nan if v is None else float(v) for v in verdicts], device=device),
            pairs={pair: self._measure(pair, scored, response_mask) for pair in self.requirements.pairs},
            has_sibling=torch.tensor([other is not None for other in shown], device=device),
        )
        policies = scores.policies
        self._decision = decision = self.objective.decide(scores)
        self._log_rollouts(verdicts, scores, token_mask)
        self.kept_rollouts = keep_rollouts(chosen, inputs, views, responses, texts, verdicts, scores, decision)

        reduction = decision.plan.reduction
        count = self.accelerator.gather(item_count(response_mask, reduction)).sum()
        batch = {
            "completion_ids": response_ids,
            "completion_mask": response_mask,
            "row": torch.arange(len(inputs)),
            "views": plain_views,
            "token_scale": token_scale(response_mask, reduction),
            "weights": torch.stack([term.weight for term in decision.plan.terms], dim=1),
            "parts": torch.stack(list(decision.parts.values()), dim=1) if decision.parts else None,
            "num_items_in_batch": count,
        }
        # Of each policy the learning pass gets what `score_tokens` kept, and hidden states only where those do not do.
        needed = rows_to_keep(decision.plan, policies)
        for source in decision.plan.sources():
            batch |= {f"scores/{source}/{name}": tensor for name, tensor in vars(policies[source]).items()}
            if source in needed:
                rows = (needed[source] & response_mask).to(scored[source].hidden.device)
                batch[f"rows/{source}"] = rows
                batch[f"hidden/{source}"] = [h[row] for h, row in zip(scored[source].hidden, rows, strict=True)]
        return batch

    # ---- one slice of it: learning ----------------------------------------------------------------------------------

    def _compute_loss(
        self, unwrapped_student: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert self._decision is not None
        # Columns that only other slices' responses reach are not computed; a refused example keeps one masked token.
        lengths = inputs["completion_mask"].sum(-1).clamp(min=1).tolist()
        longest = max(lengths)
        ids, mask = inputs["completion_ids"][:, :longest], inputs["completion_mask"][:, :longest]
        responses = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        hidden = self._hidden_states(unwrapped_student, inputs["views"], responses, self._learns_from_shared_prompts())
        template = self._decision.plan
        terms = zip(template.terms, inputs["weights"].unbind(1), strict=True)
        plan = Plan(tuple(replace(term, weight=weight[:, :longest]) for term, weight in terms), template.reduction)
        scores, sources = {}, {}
        for source in plan.sources():
            prefix = f"scores/{source}/"
            kept = {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
            scores[source] = TokenScores(**kept).map(lambda tensor: tensor[:, :longest])
            if f"hidden/{source}" in inputs:
                rows = inputs[f"rows/{source}"][:, :longest].to(mask.device)
                values = torch.cat(inputs[f"hidden/{source}"]).to(mask.device)
                width = values.shape[-1]
                sources[source] = values.new_zeros(*rows.shape, width).masked_scatter(rows.unsqueeze(-1), values)
        scale = inputs["token_scale"][:, :longest] / num_items_in_batch
        batch_rows = enumerate(inputs["row"].tolist())
        watched = KeptSlice({b: self.kept_rollouts[row] for b, row in batch_rows if row in self.kept_rollouts}, ids)
        with self._whole_heads(PLAIN_STUDENT, *sources):
            student = self._projection(PLAIN_STUDENT, hidden, constant=False)
            projections = {s: self._projection(s, whole, policy_acts=False) for s, whole in sources.items()}
            chunk_size = self.args.logits_chunk_size
            taught = fused_plan_loss(plan, student, projections, ids, mask, scores, scale, chunk_size, watched.look)

        watched.learned(taught.token_loss.detach())
        parts = inputs["parts"][:, :, :longest].unbind(1) if inputs["parts"] is not None else ()
        named_parts = dict(zip(self._decision.parts, parts, strict=True))
        self._sums.add_loss(taught.token_loss.detach(), mask, named_parts)
        supported = ~taught.kept_mass.isnan()
        self._sums.add("kept_mass/student", taught.kept_mass[supported].sum().item(), int(supported.sum()))
        seen = ~taught.entropy.isnan()
        return taught.loss, taught.entropy[seen].sum(), seen.sum()

    def _learns_from_shared_prompts(self) -> bool:
        """Checkpointed layers keep no keys and values, and a sharded module runs once between forward and backward."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return self._shares_prompts("student") and not self.args.gradient_checkpointing and not sharded

    # ---- logging -----------------------------------------------------------------------------------------------------

    def _log_rollouts(self, correct: list[bool | None], scores: Scores, scored: Tensor) -> None:
        assert self._decision is not None
        add_rollouts(self._sums, scores, self._decision, correct, self.args.logged_top_k, scored)
        values = {**self._decision.values, "refused_examples": float(self.refused)}
        of_ranks = self.accelerator.gather(torch.tensor([list(values.values())], device=self.accelerator.device))
        for name, value in zip(values, of_ranks.nanmean(0).tolist(), strict=True):
            self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            names, sums = self._sums.vector()
            if names:
                total = self.accelerator.reduce(torch.tensor(sums, device=self.accelerator.device), reduction="sum")
                logs = {**logs, **token_metrics(names, total.tolist())}
            self._sums.clear()
        super().log(logs, start_time)


class ViewTrainer(DistillationTrainer):
    """Rolls out from plain views, in an order that a resumed run finds again. The arguments are `DopdTrainer`'s."""

    args: DopdConfig
    model: PreTrainedModel

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: DopdConfig | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        view_processor: ViewProcessor | None = None,
        **kwargs: Any,
    ):
        args = args or DopdConfig("dopd-output")
        if processing_class is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            processing_class = AutoProcessor.from_pretrained(
                name, padding_side="left", trust_remote_code=args.trust_remote_code
            )
        self.resumed_from: Path | None = None
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self._tell_of_shards()
        config = self.accelerator.unwrap_model(self.model).config
        template_kwargs: Any = self.chat_template_kwargs
        self.views = view_processor or processor_for(config, processing_class, args.max_prompt_length, template_kwargs)
        self._forbid_tokens(image_token_ids(config))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; also takes up again what a checkpoint of TRL's does not hold."""
        found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self.resumed_from = Path(found) if found else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Greedy accuracy by the tasks' verifiers on every variant of `eval_variants`, shared among ranks."""
        dataset: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = [dataset[i] for i in range(rank, len(dataset), world)]
        length = self.args.eval_max_completion_length or self.args.max_completion_length or 512
        metrics: dict[str, float] = {}
        for number, variant in enumerate(self.args.eval_variants):
            with self._whole_student() as model:
                predictions, refused = predict(
                    model, self.views, mine, variant, length, self.args.per_device_eval_batch_size
                )
            total = summarise(gather_object(predictions), len(gather_object(refused)))
            prefix = metric_key_prefix if number == 0 else f"{metric_key_prefix}_{variant}"
            metrics |= {
                f"{prefix}_accuracy": total.accuracy,
                f"{prefix}_entropy": total.entropy,
                f"{prefix}_mean_tokens": total.mean_tokens,
                f"{prefix}_clipped": total.clipped,
                **{f"{prefix}_accuracy/{source}": value for source, value in total.by_source.items()},
            }
        self.accelerator.unwrap_model(self.model).eval()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _tell_of_shards(self) -> None:
        """What transformers must know of a sharded student, and is not told."""
        modules: Any = self.accelerator.unwrap_model(self.model).modules()
        models: list[Any] = [module for module in modules if isinstance(module, PreTrainedModel)]
        for model in models:
            if self.is_fsdp_enabled:
                # Ranks then draw until the longest rollout of all has ended, for one that went on alone would wait for
                # the others' shards. Accelerate leaves this mark off FSDP2's models.
                model._is_fsdp_managed_module = True
            if self._dist.is_zero3 and "_weight_conversions" in vars(model):
                # A save undoes the renamings of the load; under ZeRO-3 also those that renamed nothing are kept for it.
                used = [conversion for conversion in model._weight_conversions if conversion.was_used()]
                model._weight_conversions = used

    @contextmanager
    def _whole_student(self) -> Iterator[PreTrainedModel]:
        """While it lasts, the student is whole on every rank: each may ask it for more than others do, and its head."""
        model: Any = self.accelerator.unwrap_model(self.model)
        parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
        if self._dist.is_zero3:
            kwargs: Any = self.args.gradient_checkpointing_kwargs
            with unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=kwargs
            ) as gathered:
                yield gathered
            return
        if not parts:
            yield model
            return
        plugin: Any = self.accelerator.state.fsdp_plugin
        wrapped = set(plugin.transformer_cls_names_to_wrap or model._no_split_modules)
        layers = [part for part in parts if wrapped & {kind.__name__ for kind in type(part).__mro__}]
        for layer in layers:  # accelerate keeps all but these whole from their first use on
            layer.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        # transformers makes `generate` a forward pass of FSDP's. It ends after the passes inside it, and would then
        # shard the outermost part whatever it was told.
        generate = vars(model).pop("generate", None)
        try:
            yield model
        finally:
            if generate is not None:
                model.generate = generate
            for layer in layers:
                layer.set_reshard_after_forward(plugin.reshard_after_forward)
            for part in parts:
                part.reshard()

    # ---- seams of TRL -----------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns: Any = ["id", "prompt", "images", "answer", "task", "source", "privileged"]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        args = self.args
        source: Any = self.train_dataset if dataset is None else dataset
        rollouts = args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        prompts = rollouts // args.num_generations
        sampler = RepeatSampler(
            data_source=source,
            mini_repeat_count=args.num_generations,
            batch_size=prompts,
            repeat_count=args.gradient_accumulation_steps,
            shuffle=bool(self.shuffle_dataset),
            seed=args.seed,
        )
        if self.resumed_from is not None:
            # Each pass over the data draws its order from the last one's generator, which no checkpoint holds.
            state = TrainerState.load_from_json(str(self.resumed_from / TRAINER_STATE_NAME))
            for _ in range(state.global_step // max(1, len(source) // prompts)):
                next(iter(sampler), None)
        return sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Of a run that was killed after its last step only what comes then is left; TRL would take one more step.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[View]) -> tuple[list[list[int]], list | None, dict[str, Any]]:
        """The plain views' own ids and image features, for `_generate`."""
        prompt_ids = [view.prompt_ids for view in prompts]
        batch = self.views.collate(prompts, [[] for _ in prompts], self._tokenizer.pad_token_id)
        fields: dict[str, Any] = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in fields:
            fields["mm_token_type_ids"] = [view.mm_token_type_ids or [0] * len(view.prompt_ids) for view in prompts]
        images = [view.images or None for view in prompts]
        return prompt_ids, images if any(images) else None, fields

    def _forbid_tokens(self, ids: list[int]) -> None:
        if not ids:
            return
        if self.use_vllm:
            # vLLM has no suppress_tokens; a bias of -100 is as good.
            asked = self.vllm_generation.generation_kwargs
            bias = {**asked.get("logit_bias", {}), **{token: -100.0 for token in ids}}
            self.vllm_generation.generation_kwargs = {**asked, "logit_bias": bias}
        else:
            self.generation_kwargs["suppress_tokens"] = ids
            self.generation_config.suppress_tokens = ids
