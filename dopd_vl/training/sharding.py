"""However a model is wrapped, sharded or adapted by its trainer, it is so here and nowhere else.

`Models` are whole and in this process. `TrainerModels` are those of a TRL trainer: under DDP, FSDP2 or DeepSpeed, with
adapters or without.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel
from trl.models import prepare_deepspeed, unwrap_model_for_generation
from trl.trainer.utils import maybe_gather_lm_head_ctx

from dopd_vl.models import autocast_dtype, cast_once
from dopd_vl.training.teachers import DEFAULT, TEACHER, is_teacher

Result = TypeVar("Result")


class Models:
    """The student's model, by which each of its copies acts too, and those of teachers in this process.

    Args:
        teachers: by policy, or the teacher's alone.
    """

    compute_dtype: torch.dtype | None = None
    """what `precision` computes matrix products in, heads' too; None: in the dtype of the weights"""

    def __init__(
        self, student: PreTrainedModel, teachers: PreTrainedModel | Mapping[str, PreTrainedModel] | None = None
    ):
        self._student: Any = student
        alone = {TEACHER: teachers, DEFAULT: teachers}
        self.teachers: Mapping[str, Any] = teachers if isinstance(teachers, Mapping) else alone

    @property
    def device(self) -> torch.device:
        return self.bare("student").device

    def wrapped(self, policy: str) -> torch.nn.Module:
        """The model of a policy as it is trained.

        Raises:
            ValueError: there is no such teacher in this process.
        """
        if not is_teacher(policy):
            return self._student
        model: Any = self.teachers.get(policy)
        if model is None:
            raise ValueError("there is no teacher_model" if policy == TEACHER else f"there is no model of {policy}")
        return model

    def bare(self, policy: str) -> PreTrainedModel:
        """The same without wrappers; adapters stay."""
        model: Any = self.wrapped(policy)
        return model

    def sharded(self, policy: str) -> bool:
        """Whether every rank must run every module of the policy's model that another rank does."""
        return False

    def run(self, policy: str, function: Callable[[], Result]) -> Result:
        """`function()`, while the weights of the policy's model are whole."""
        return function()

    def precision(self) -> AbstractContextManager[None]:
        """While it lasts, forward passes are computed in `compute_dtype`. It is meant for them alone: what is made of
        logits has to be computed in fp32."""
        return nullcontext()

    @contextmanager
    def whole_heads(self, policies: Iterable[str], in_forward: bool = True) -> Iterator[None]:
        """While it lasts, the heads of these policies are not sharded.

        Args:
            in_forward: Whether this is within the student's own forward pass, where its weights are whole already.
        """
        yield


class TrainerModels(Models):
    """The models of a `trl.DistillationTrainer`.

    Args:
        others: teachers beside its own, by policy.
    """

    def __init__(self, trainer: Any, shard_teacher: bool = False, others: Mapping[str, PreTrainedModel] | None = None):
        self._trainer = trainer
        own = trainer.teacher_model
        self.teachers = {} if own is None else {TEACHER: own, DEFAULT: own}
        for policy, model in (others or {}).items():
            self.teachers[policy] = self._prepared(model)
        self._keep_arguments_out()
        for teacher in {id(model): model for model in self.teachers.values()}.values():
            self._place_teacher(teacher, shard_teacher)
        self._tell_of_shards()

    @property
    def device(self) -> torch.device:
        return self._trainer.accelerator.device

    @property
    def compute_dtype(self) -> torch.dtype | None:  # type: ignore[override]
        with self.precision():
            return autocast_dtype(self.device)

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
        self._student = self._trainer.model_wrapped
        return super().wrapped(policy)

    def bare(self, policy: str) -> PreTrainedModel:
        return self._trainer.accelerator.unwrap_model(self.wrapped(policy))

    def sharded(self, policy: str) -> bool:
        if self._trainer.is_deepspeed_enabled:
            return True
        return isinstance(self.wrapped(policy), FSDPModule) or (
            not is_teacher(policy) and self._trainer.is_fsdp_enabled
        )

    def run(self, policy: str, function: Callable[[], Result]) -> Result:
        """Through the wrapper's own forward pass, so that a sharded model's weights are whole in it, head and all."""
        result = []

        def forward() -> None:
            result.append(function())

        self._trainer._forward_redirection(self.wrapped(policy), self.bare(policy), forward)
        return result[0]

    def precision(self) -> AbstractContextManager[None]:
        """Autocast, as the trainer was told. Accelerate's own stands in the forward passes of whole models, and those
        of backbones pass it by."""
        return self._trainer.accelerator.autocast()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """`precision` while the student generates, all of it, its vision tower too, and its weights cast once, unless
        they lie in shards."""
        dtype = None if self.sharded("student") else self.compute_dtype
        with self.precision(), cast_once(self.bare("student"), dtype):
            yield

    @contextmanager
    def whole_heads(self, policies: Iterable[str], in_forward: bool = True) -> Iterator[None]:
        """As `Models.whole_heads`, under FSDP2 and ZeRO-3."""
        with ExitStack() as stack:
            for policy in dict.fromkeys(policies):
                wrapped = self.wrapped(policy)
                head: Any = self.bare(policy).get_output_embeddings()
                if isinstance(wrapped, FSDPModule):
                    if is_teacher(policy) or not in_forward:
                        # Accelerate shards the head apart from the rest; older releases shard it with the whole.
                        part = head if isinstance(head, FSDPModule) else wrapped
                        part.unshard()
                        stack.callback(part.reshard)
                else:
                    bias: Any = getattr(head, "bias", None)
                    stack.enter_context(maybe_gather_lm_head_ctx(head.weight, bias))
            yield

    def whole_for_rollouts(self) -> AbstractContextManager[Any]:
        """While it lasts, TRL may draw rollouts from the student, each rank as many tokens, and from as many images, as
        it pleases. Of FSDP2 it knows nothing, and would gather every layer anew for every token."""
        ours = self._trainer.is_fsdp_enabled and not self._trainer.use_vllm
        return self.whole_student() if ours else nullcontext()

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
        # The outermost part must be the first that runs; a vision tower may be called by itself.
        self.run("student", lambda: None)
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

    def _keep_arguments_out(self) -> None:
        """Nothing is an argument of a wrapped module but what a model reads, and its loss stays as it is.

        FSDP2 rounds to bf16 whatever floats pass its wrappers, down to those in dictionaries and dataclasses, DDP moves
        and copies them: weights, log-probabilities, numbers of items and the loss would come out changed.
        """
        trainer = self._trainer
        redirect = trainer._forward_redirection

        def forward(
            wrapped: torch.nn.Module, bare: torch.nn.Module, method: Callable[..., Any], *arguments: Any
        ) -> Any:
            return redirect(wrapped, bare, partial(method, *arguments))

        trainer._forward_redirection = forward
        plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)

    def _prepared(self, teacher: PreTrainedModel) -> Any:
        """A further teacher, as TRL prepares its own."""
        trainer = self._trainer
        teacher.requires_grad_(False).eval()
        if trainer.is_deepspeed_enabled:
            return prepare_deepspeed(teacher, trainer.accelerator)
        return trainer.accelerator.prepare_model(teacher, evaluation_mode=True)

    def _place_teacher(self, teacher: Any, shard: bool) -> None:
        """On the device, which accelerate leaves to FSDP, or in shards on all of them."""
        trainer = self._trainer
        if trainer.is_deepspeed_enabled or getattr(teacher, "is_quantized", False):
            return
        if not (shard and trainer.accelerator.num_processes > 1):
            teacher.to(trainer.accelerator.device)
            return
        layers = set(teacher._no_split_modules or ())
        for module in list(teacher.modules()):
            if layers & {kind.__name__ for kind in type(module).__mro__}:
                fully_shard(module, reshard_after_forward=True)
        fully_shard(teacher, reshard_after_forward=True)

    def _tell_of_shards(self) -> None:
        """What transformers must know of a sharded student, and is not told."""
        models: list[Any] = [part for part in self.bare("student").modules() if isinstance(part, PreTrainedModel)]
        for model in models:
            if self._trainer._dist.is_zero3 and "_weight_conversions" in vars(model):
                # A save undoes the renamings of the load; under ZeRO-3 also those that renamed nothing are kept for it.
                used = [conversion for conversion in model._weight_conversions if conversion.was_used()]
                model._weight_conversions = used
