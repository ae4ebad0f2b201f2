"""Where each regime of DOPD pulls the student: its gradient beside the one that right answers would give.

    python benchmarks/regime_gradients.py --config runs/x/config.yaml --students runs/x/checkpoint-25 ...

For every student given, one batch of rollouts is made, scored and routed as in training. Then, without any update, the
gradient of each regime's share of the loss is compared with two supervised gradients of the nano world, whose records
have a reference response: that of the reference after the plain prompt, and after the privileged one. A cosine above
zero means that a step along the regime's gradient makes the right answer likelier there, below zero less likely.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.nano.sft import Phase, make_rows, response_loss
from dopd_vl.common.configuration import read_config
from dopd_vl.common.resources import find_model
from dopd_vl.core import REGIMES
from dopd_vl.nano.source import WORLDS
from dopd_vl.objectives import Dopd
from dopd_vl.objectives.build import build_objective
from dopd_vl.train_config import TrainConfig
from dopd_vl.training.run import load_examples, trainer_arguments
from dopd_vl.training.trainer import DopdTrainer

NAMES = [regime.name for regime in REGIMES]


class RegimeGradients(DopdTrainer):
    """Takes each regime's gradient of the first slice that it is given, and teaches nothing."""

    found: dict[str, Tensor]
    shares: dict[str, float]

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        whole = inputs["weights"]
        self.found = {}
        for number, name in enumerate(NAMES):
            only = torch.zeros_like(whole)
            only[:, number] = whole[:, number]
            loss, _, _ = super()._compute_loss(unwrapped_student, {**inputs, "weights": only}, num_items_in_batch)
            self.found[name] = flat_gradient(loss, unwrapped_student)
        tokens = inputs["completion_mask"].sum().item()
        self.shares = {name: (whole[:, number] != 0).sum().item() / tokens for number, name in enumerate(NAMES)}
        return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)


def flat_gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    """The gradient in all weights that learn, one vector."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    pairs = zip(gradients, weights, strict=True)
    return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for g, w in pairs])


def measure(
    config: TrainConfig, student: str, world: str, tasks: Sequence[str] | None, rollouts: int
) -> dict[str, Any]:
    """Shares, norms and cosines of the regimes' gradients for one student, on `rollouts` rollouts."""
    objective = build_objective(config.objective.name, config.objective.settings)
    if not isinstance(objective, Dopd) or objective.student_policy != "student":
        raise ValueError("only DOPD with the student's live copy has all that a checkpoint alone can tell")
    one_step: dict[str, Any] = {
        "max_steps": 1,
        "learning_rate": 0.0,
        "warmup_steps": 0,
        "per_device_train_batch_size": rollouts,
    }
    config = replace(
        config,
        training=replace(config.training, **one_step),
        data=replace(config.data, eval=None),
    )
    assert config.model.teacher is not None
    teacher, examples = find_model(config.model.teacher), load_examples(config.data.train)
    with tempfile.TemporaryDirectory() as folder:  # TRL wants one; nothing is saved
        arguments = trainer_arguments(replace(config, output_dir=folder))
        arguments.save_strategy = "no"
        trainer = RegimeGradients(find_model(student), teacher, arguments, examples, objective=objective)
        trainer.train()
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    supervised = {}
    for name, variant in (("plain", "none"), ("privileged", WORLDS[world].default_variant)):
        phase = Phase(1, rollouts, {variant: 1.0}, None if tasks is None else tuple(tasks))
        rows = make_rows(phase, world, trainer.views, seed=1)
        losses = [response_loss(model, rows[at : at + 64], trainer.views) for at in range(0, len(rows), 64)]
        tokens = sum(len(ids) for _, ids in rows)
        supervised[name] = torch.stack([flat_gradient(loss / tokens, model) for loss in losses]).sum(0)
        supervised[f"{name}_loss"] = torch.stack([loss.detach() for loss in losses]).sum() / tokens
    total = sum(trainer.found.values())
    assert isinstance(total, Tensor)
    rows_out = {}
    for name, gradient in {**trainer.found, "all": total}.items():
        rows_out[name] = {
            "share": trainer.shares.get(name, 1.0),
            "norm": gradient.norm().item(),
            **{f"cosine_{kind}": _cosine(gradient, supervised[kind]) for kind in ("plain", "privileged")},
        }
    return {
        "student": student,
        "supervised_loss": {kind: supervised[f"{kind}_loss"].item() for kind in ("plain", "privileged")},
        "regimes": rows_out,
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.yaml of a DOPD run on the nano world")
    parser.add_argument("--students", nargs="+", required=True, help="model folders: its student and checkpoints")
    parser.add_argument("--world", choices=("text", "vision"), required=True)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()
    config = read_config(TrainConfig, ["--config", args.config], "regime_gradients")
    found = [measure(config, student, args.world, args.tasks, args.rollouts) for student in args.students]
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(row["student"], {k: round(v, 3) for k, v in row["supervised_loss"].items()})
        for name, values in row["regimes"].items():
            print(f"  {name:4}", "  ".join(f"{key} {value:+.3f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
