"""However a model is wrapped, sharded or adapted by its trainer, it is so here and nowhere else.

`Models` are whole and in this process. `TrainerModels` are those of a TRL trainer: under DDP, FSDP2 or DeepSpeed, with
adapters or without.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import maybe_gather_lm_head_ctx

Result = TypeVar("Result")


class Models:
    """The student's model, by which each of its copies acts too, and its teacher's."""

    sharded = False
    """whether every rank must run every module that another does"""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel | None = None):
        self._models: dict[bool, Any] = {False: student, True: teacher}

    @property
    def device(self) -> torch.device:
        return self.bare("student").device

    def wrapped(self, policy: str) -> torch.nn.Module:
        """The model of a policy as it is trained.

        Raises:
            ValueError: there is no teacher.
        """
        model = self._models[policy == "teacher"]
        if model is None:
            raise ValueError("there is no teacher_model")
        return model

    def bare(self, policy: str) -> PreTrainedModel:
        """The same without wrappers; adapters stay."""
        model: Any = self.wrapped(policy)
        return model

    def run(self, policy: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)`, while the weights of the policy's model are whole."""
        return function(*arguments)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """While it lasts, passes and projections are computed as in learning."""
        yield

    @contextmanager
    def whole_heads(self, policies: Iterable[str], in_forward: bool = True) -> Iterator[None]:
        """While it lasts, the heads of these policies are not sharded.

        Args:
            in_forward: Whether this is within the student's own forward pass, where its weights are whole already.
        """
        yield


class TrainerModels(Models):
    """The models of a `trl.DistillationTrainer`."""

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._tell_of_shards()

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return self._trainer.is_fsdp_enabled or self._trainer.is_deepspeed_enabled

    @property
    def device(self) -> torch.device:
        return self._trainer.accelerator.device

    @property
    def has_adapters(self) -> bool:
        """Whether the student learns by adapters alone."""
        return hasattr(self.bare("student"), "disable_adapter")

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's, 0 without it."""
        return self._trainer._dist.zero_stage

    def wrapped(self, policy: str) -> torch.nn.Module:
        # Training wraps the student anew, so it is looked up each time.
        self._models = {False: self._trainer.model_wrapped, True: self._trainer.teacher_model}
        return super().wrapped(policy)

    def bare(self, policy: str) -> PreTrainedModel:
        return self._trainer.accelerator.unwrap_model(self.wrapped(policy))

    def run(self, policy: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Through the wrapper's own forward pass, so that a sharded model's weights are whole in it, head and all."""
        with self.precision():
            return self._trainer._forward_redirection(self.wrapped(policy), self.bare(policy), function, *arguments)

    @contextmanager
    def precision(self) -> Iterator[None]:
        with self._trainer.compute_loss_context_manager():
            yield

    @contextmanager
    def whole_heads(self, policies: Iterable[str], in_forward: bool = True) -> Iterator[None]:
        """As `Models.whole_heads`, under FSDP2 and ZeRO-3."""
        with ExitStack() as stack:
            for policy in dict.fromkeys(policies):
                wrapped = self.wrapped(policy)
                head: Any = self.bare(policy).get_output_embeddings()
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

    @contextmanager
    def whole_student(self) -> Iterator[PreTrainedModel]:
        """While it lasts, the student is whole on every rank: each may ask it for more than others do, and its head."""
        trainer = self._trainer
        model: Any = self.bare("student")
        parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
        if trainer._dist.is_zero3:
            kwargs: Any = trainer.args.gradient_checkpointing_kwargs
            with unwrap_model_for_generation(
                trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=kwargs
            ) as gathered:
                yield gathered
            return
        if not parts:
            yield model
            return
        plugin: Any = trainer.accelerator.state.fsdp_plugin
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

    def _tell_of_shards(self) -> None:
        """What transformers must know of a sharded student, and is not told."""
        models: list[Any] = [part for part in self.bare("student").modules() if isinstance(part, PreTrainedModel)]
        for model in models:
            if self._trainer.is_fsdp_enabled:
                # Ranks then draw until the longest rollout of all has ended, for one that went on alone would wait for
                # the others' shards. Accelerate leaves this mark off FSDP2's models.
                model._is_fsdp_managed_module = True
            if self._trainer._dist.is_zero3 and "_weight_conversions" in vars(model):
                # A save undoes the renamings of the load; under ZeRO-3 also those that renamed nothing are kept for it.
                used = [conversion for conversion in model._weight_conversions if conversion.was_used()]
                model._weight_conversions = used
