"""Where each regime of DOPD pulls the student: its gradient beside the one that right answers would give.

    python benchmarks/regime_gradients.py --config runs/x/config.yaml --world text --students runs/x/checkpoint-25 ...
    python benchmarks/regime_gradients.py --config runs/y/config.yaml --references runs/real/smollm2/sft.jsonl ...

For every student given, one batch of rollouts is made, scored and routed as in training. Then, without any update, the
gradient of each regime's share of the loss is compared with two supervised gradients: that of reference responses after
the plain prompt, and after the privileged one. The records of the nano worlds have reference responses, and so have
those of `python -m benchmarks.smollm2 data`. A cosine above zero means that a step along the regime's gradient makes
the right answer likelier there, below zero less likely.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.nano.sft import Phase, Row, make_rows, response_loss
from benchmarks.smollm2.models import make_rows as rows_of_records
from dopd_vl.common.configuration import read_config
from dopd_vl.common.files import read_jsonl
from dopd_vl.common.resources import find_model
from dopd_vl.core import REGIMES
from dopd_vl.nano.source import WORLDS
from dopd_vl.objectives import Dopd
from dopd_vl.objectives.build import build_objective
from dopd_vl.train_config import TrainConfig
from dopd_vl.training.run import load_examples, trainer_arguments
from dopd_vl.training.trainer import DopdTrainer
from dopd_vl.views import ViewProcessor

NAMES = [regime.name for regime in REGIMES]
MakeRows = Callable[[ViewProcessor, bool], list[Row]]
"""Reference responses, each after its prompt: plain, or privileged where the second argument is true"""


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


def of_world(world: str, tasks: Sequence[str] | None, size: int) -> MakeRows:
    """The references of so many records of a nano world."""

    def rows(views: ViewProcessor, privileged: bool) -> list[Row]:
        variant = WORLDS[world].default_variant if privileged else "none"
        return make_rows(Phase(1, size, {variant: 1.0}, None if tasks is None else tuple(tasks)), world, views, seed=1)

    return rows


def of_file(file: Path, size: int) -> MakeRows:
    """The references of the first records of a JSONL file, which have a `response`; privileged prompts show hints."""
    records = read_jsonl(file)[:size]
    return lambda views, privileged: rows_of_records(records, views, float(privileged), seed=1)


def measure(config: TrainConfig, student: str, references: MakeRows, rollouts: int) -> dict[str, Any]:
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
    for name in ("plain", "privileged"):
        rows = references(trainer.views, name == "privileged")
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
    parser.add_argument("--config", required=True, help="config.yaml of a DOPD run")
    parser.add_argument("--students", nargs="+", required=True, help="model folders: its student and checkpoints")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--world", choices=("text", "vision"), help="the nano world whose references are taken")
    source.add_argument("--references", type=Path, metavar="FILE", help="records with a `response`, in JSONL")
    parser.add_argument("--tasks", nargs="+", help="of the nano world")
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()
    config = read_config(TrainConfig, ["--config", args.config], "regime_gradients")
    by_world = args.world is not None
    references = (
        of_world(args.world, args.tasks, args.rollouts) if by_world else of_file(args.references, args.rollouts)
    )
    found = [measure(config, student, references, args.rollouts) for student in args.students]
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(row["student"], {k: round(v, 3) for k, v in row["supervised_loss"].items()})
        for name, values in row["regimes"].items():
            print(f"  {name:4}", "  ".join(f"{key} {value:+.3f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
