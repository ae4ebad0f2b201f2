"""TRL's distillation trainer on privileged data: prompts are views, and evaluations are scored by the tasks' verifiers.

What is TRL's stays TRL's: the loop, rollouts (transformers or vLLM), DDP / FSDP2 / DeepSpeed, LoRA, checkpoints,
loggers. Overridden seams, each pinned by a test:

    _set_signature_columns_if_needed   keep every column of a privileged data set
    _get_train_sampler                 n rollouts of a prompt side by side, in the order that the run began with
    _run_epoch                         a run that is resumed at its end is at its end
    _tokenize_prompts                  the rollout's prompt is the plain view, not a second rendering of it

`train` is TRL's, and remembers which checkpoint a run goes on from. What is taught, and how, is `trainer.py`'s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset, Sampler
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import DistillationTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from dopd_vl.evaluation.accuracy import predict, summarise
from dopd_vl.evaluation.models import image_token_ids
from dopd_vl.training.arguments import DopdConfig
from dopd_vl.views import View, ViewProcessor, processor_for


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
