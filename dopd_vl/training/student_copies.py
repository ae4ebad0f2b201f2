"""The student at other times: its weights before the first step, and their slow average, as supervising policies.

Both hold one copy of the weights that are trained, and no second model: for a forward pass the copy and the student's
weights change places. With LoRA only adapters are trained, so an average is as small as they are, and the student
before its first step is the base model with its adapters off, which needs no copy at all.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import distribute_tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dopd_vl.common.errors import UserError
from dopd_vl.common.run_layout import AVERAGE_FILE, checkpoint_folder


class WeightCopy:
    """A copy of a model's trained weights, by name; of a sharded model each rank holds its shard's."""

    def __init__(self, model: torch.nn.Module, whole: Mapping[str, Tensor] | None = None):
        """`whole`: other values than the model's own, not sharded."""
        self.weights: dict[str, Tensor] = {}
        for name, weight in trained(model):
            value = weight.detach()
            self.weights[name] = value.clone() if whole is None else _laid_out_like(whole[name], value)

    @torch.no_grad()
    def follow(self, model: torch.nn.Module, rate: float) -> None:
        """Move every weight the share `rate` of the way to the model's."""
        for name, weight in trained(model):
            self.weights[name].lerp_(weight.detach().to(self.weights[name].dtype), rate)

    @contextmanager
    def acting(self, model: torch.nn.Module) -> Iterator[None]:
        """While it lasts, the model has the copy's weights. No gradient may be taken across it."""
        self._change_places(model)
        try:
            yield
        finally:
            self._change_places(model)

    @torch.no_grad()
    def _change_places(self, model: torch.nn.Module) -> None:
        for name, weight in trained(model):
            kept = self.weights[name]
            held = weight.detach().clone()
            weight.copy_(kept)
            kept.copy_(held)

    def whole(self, name: str) -> Tensor:
        """One weight, put together from its shards where it has any."""
        weight: Any = self.weights[name]
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight

    def save(self, folder: Path, write: bool) -> None:
        """Write `average.safetensors`; every rank must call it, `write` says which one writes."""
        whole = {name: self.whole(name).cpu().contiguous() for name in self.weights}
        if write:
            partial = folder / f".{AVERAGE_FILE}.partial"
            save_file(whole, partial)
            partial.rename(folder / AVERAGE_FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take up again what `save` wrote.

        Raises:
            ValueError: it is not there, or is of other weights.
        """
        file = folder / AVERAGE_FILE
        if not file.is_file():
            raise ValueError(f"{file} is missing: the slow average of the student cannot be taken up again")
        saved = load_file(file)
        if saved.keys() != self.weights.keys() or any(saved[n].shape != w.shape for n, w in self.weights.items()):
            raise ValueError(f"{file} holds other weights than this student's")
        for name, weight in self.weights.items():
            weight.copy_(_laid_out_like(saved[name], weight))


def check_copies(policies: set[str], has_adapters: bool, zero_stage: int) -> None:
    """Raises: UserError: ZeRO-3, which leaves no weights between forward passes to copy or to change places with."""
    kept = policies & ({"average"} if has_adapters else {"start", "average"})
    if kept and zero_stage == 3:
        raise UserError(
            f"objective.name: it is taught by the student at another time ({', '.join(sorted(kept))}), whose weights "
            "are not kept with ZeRO-3; use ZeRO-2, FSDP2 or DDP"
        )


class StudentCopies:
    """The policies "start" and "average" of one student; only what the objective asks for is kept."""

    def __init__(self, model: PreTrainedModel, policies: set[str], average_rate: float, average_every: int = 1):
        """To be called while the model has its first weights, and before they are sharded."""
        self.model: Any = model
        self.policies = policies
        self.average_rate, self.average_every = average_rate, average_every
        self.start: WeightCopy | None = None
        self.average: WeightCopy | None = None
        has_adapters = hasattr(model, "disable_adapter")
        keeps_start = "start" in policies and not has_adapters
        self._first = {name: weight.detach().cpu().clone() for name, weight in trained(model)} if keeps_start else None

    def begin(self, model: PreTrainedModel, checkpoint: Path | None) -> None:
        """Training starts with this model, its weights where they will stay, or goes on from a checkpoint."""
        self.model = model
        if self._first is not None:
            self.start = WeightCopy(model, self._first)
        if "average" in self.policies:
            self.average = WeightCopy(model)
            if checkpoint is not None:
                self.average.load(checkpoint)

    @contextmanager
    def acting(self, policy: str) -> Iterator[None]:
        """While it lasts, the student's model is the student at that time ("student": now)."""
        copy = {"start": self.start, "average": self.average}.get(policy)
        if copy is not None:
            with copy.acting(self.model):
                yield
        elif policy == "start":
            with self.model.disable_adapter():
                yield
        else:
            yield

    def head(self, policy: str) -> tuple[Tensor, Tensor | None]:
        """The policy's own weight and bias of the student's head, constant."""
        head: Any = self.model.get_output_embeddings()
        copy = {"start": self.start, "average": self.average}.get(policy)
        if policy == "start" and copy is None and isinstance(head, ModulesToSaveWrapper):
            head = head.original_module  # with the adapters off the base has its own head, too
        names = {} if copy is None else {id(weight): name for name, weight in trained(self.model)}

        def own(weight: Tensor) -> Tensor:
            return copy.whole(names[id(weight)]) if copy is not None and id(weight) in names else weight.detach()

        bias = getattr(head, "bias", None)
        return own(head.weight), None if bias is None else own(bias)

    def save(self, folder: Path, write: bool) -> None:
        """Leave in a checkpoint what `begin` needs of it; every rank must call it, `write` says which one writes."""
        if self.average is not None:
            self.average.save(folder, write)

    def after_step(self, step: int) -> None:
        """The average follows, where it is time; `step` optimizer steps have been taken."""
        if self.average is not None and step % self.average_every == 0:
            self.average.follow(self.model, self.average_rate)


def _laid_out_like(whole: Tensor, weight: Any) -> Tensor:
    """A whole tensor on the device, in the dtype and with the sharding of a weight."""
    value = whole.to(weight.device, weight.dtype)
    if not hasattr(weight, "full_tensor"):
        return value.clone()
    return distribute_tensor(value, weight.device_mesh, weight.placements)


def trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and values of the weights that learn, each once."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


class CopiesAlongTheRun(TrainerCallback):
    """The copies of a trainer's student along its run: begun, moved on each optimizer step, saved, taken up again."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        policies = self.trainer.policies
        policies.copies.begin(policies.models.bare("student"), self.trainer.resumed_from)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.policies.copies.after_step(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = checkpoint_folder(Path(str(args.output_dir)), state.global_step)
        self.trainer.policies.copies.save(folder, state.is_world_process_zero)
