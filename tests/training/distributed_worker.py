"""A short DOPD training with rollouts that chance has no part in, in one process or as one of several."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.core import TokenScores
from dopd_vl.objectives import Dopd, Opd
from dopd_vl.run_folder.folder import RunFolder
from dopd_vl.served.teacher import ServedTeacher
from dopd_vl.train_config import ServerSettings
from dopd_vl.training import policies
from dopd_vl.training import trainer as trainer_module
from dopd_vl.training.policies import Policies
from dopd_vl.training.run import load_examples
from dopd_vl.training.sharding import Models
from dopd_vl.training.teachers import Teacher, TeacherLost

ROLLOUTS = 8  # of a step, over all ranks and slices
SMALL: dict[str, Any] = {
    "num_generations": 2,
    "max_completion_length": 4,
    "use_cpu": True,
    "report_to": "none",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 3,
}


def allow_fsdp_on_a_cpu() -> None:
    """Accelerate shards on accelerators alone; torch itself shards on a CPU as well."""
    initialise = AcceleratorState.__init__

    def initialise_with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = initialise_with_fsdp  # type: ignore[method-assign]


def without_images(example: dict[str, Any]) -> dict[str, Any]:
    prompt = [{**message, "content": message["content"].replace("<image>", "")} for message in example["prompt"]]
    return {
        **example,
        "images": [],
        "prompt": prompt,
        "privileged": {**example["privileged"], "boxes": None, "hints": ["Count."]},
    }


def learn_mixed(models: Path, data: Path, output: Path, name: str) -> None:
    """One step in bf16 in which the first rank sees pictures and the second one sees none, the teacher in shards.

    Leaves what went into a wrapped module and what came out on its other side.
    """
    torch.set_num_threads(1)
    allow_fsdp_on_a_cpu()
    config = DopdConfig(
        str(output / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        shuffle_dataset=False,
        save_strategy="no",
        use_cpu=True,
        bf16=True,
        report_to="none",
        disable_tqdm=True,
        shard_teacher=True,
        logging_steps=1,
        scoring_batch_size=2,
        seed=3,
    )
    rows = list(load_examples(str(data)).select(range(2)))
    objective = Dopd(top_k=16) if name == "dopd" else Opd(divergence="js", teacher_view="privileged")
    trainer = DopdTrainer(
        str(models / "vision-student"),
        str(models / "vision-teacher"),
        config,
        train_dataset=Dataset.from_list([rows[0], without_images(rows[1])], features=load_examples(str(data)).features),
        objective=objective,
    )
    rank = trainer.accelerator.process_index
    whole = AutoModelForImageTextToText.from_pretrained(models / "vision-teacher").eval()
    stored, loaded = load_file(models / "vision-teacher" / "model.safetensors"), whole.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in stored.items())
    outside = Policies(Models(whole, whole), trainer.views, trainer.policies.copies, 2)
    found: dict[str, Any] = {"images": [], "scores": [], "teacher": [], "plan": [], "loss": [], "shared": []}
    inside: list[TokenScores] = []
    towers = {
        "student": trainer.models.bare("student").model.visual,
        "teacher": trainer.models.bare("teacher").model.visual,
    }
    looked = dict.fromkeys(towers, 0)
    for policy, tower in towers.items():
        tower.register_forward_hook(lambda *_, policy=policy: looked.update({policy: looked[policy] + 1}))

    score_inside, score, loss_inside, loss = (
        policies.score_tokens,
        trainer.policies.score,
        trainer_module.fused_plan_loss,
        trainer.compute_loss,
    )

    def scored_inside(*args: Any, **kwargs: Any) -> TokenScores:
        inside.append(score_inside(*args, **kwargs))
        return inside[-1]

    def scored(source: Any, views: Any, responses: Any, mask: Any) -> Any:
        inside.clear()
        result = score(source, views, responses, mask)
        found["images"].append(sum(len(view.images) for view in views))
        [computed] = inside
        same = (
            torch.equal(a[mask], b[mask])
            for a, b in zip(vars(computed).values(), vars(result.scores).values(), strict=False)
        )
        found["scores"].append(all(same) and result.scores.logp.dtype == torch.float32)
        if source.policy == "teacher":
            with torch.autocast("cpu", torch.bfloat16):
                hidden = outside.hidden_states("teacher", views, responses, shared=True).to(torch.bfloat16)
            found["teacher"].append((hidden - result.hidden[:, : hidden.shape[1]]).abs().max().item())
        return result

    def learned_inside(plan: Any, student: Any, sources: Any, ids: Any, mask: Any, scores: Any, scale: Any, *rest: Any):
        decided = trainer._decision.plan
        pairs = [(t.weight, d.weight[:, : mask.shape[1]]) for t, d in zip(plan.terms, decided.terms, strict=False)]
        # TRL has shuffled the rows.
        found["plan"].append(all(torch.equal(a.sort(0)[0], b.sort(0)[0]) and a.dtype == b.dtype for a, b in pairs))
        result = loss_inside(plan, student, sources, ids, mask, scores, scale, *rest)
        found["loss"].append(result.loss.item())
        return result

    def learned(*args: Any, **kwargs: Any) -> Any:
        result = loss(*args, **kwargs)
        found["loss"].append(result.item())
        return result

    policies.score_tokens, trainer.policies.score = scored_inside, scored  # type: ignore[method-assign]
    trainer_module.fused_plan_loss, trainer.compute_loss = learned_inside, learned
    trainer.train()
    found |= {
        "towers": looked,
        "kind": type(trainer.model_wrapped).__name__,
        "teacher_kind": type(trainer.teacher_model).__name__,
        "grad_norm": trainer.state.log_history[0]["grad_norm"],
    }
    (output / f"found-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


def learn_passing_over(models: Path, data: Path, output: Path, usable: list[bool]) -> None:
    """Steps of one prompt a rank, of which some cannot be shown; leaves a run folder's files, the log and how the model
    was wrapped."""
    torch.set_num_threads(1)
    allow_fsdp_on_a_cpu()
    world = int(os.environ.get("WORLD_SIZE", 1))
    config = DopdConfig(
        str(output),
        max_steps=len(usable) // world,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        top_k=1,  # rollouts are greedy
        shuffle_dataset=False,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
        logging_steps=1,
        seed=3,
    )
    examples = load_examples(str(data))
    bad = [{"bytes": b"no image", "path": None}]
    rows = [row if use else {**row, "images": bad} for row, use in zip(examples, usable, strict=False)]
    folder = RunFolder(output)
    trainer = DopdTrainer(
        str(models / "vision-student"),
        str(models / "vision-teacher"),
        config,
        train_dataset=Dataset.from_list(rows, features=examples.features),
        objective=Dopd(top_k=16),
        callbacks=[folder],
    )
    folder.attach(trainer)
    trainer.train()
    if trainer.accelerator.is_main_process:
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        (output / "kind.json").write_text(json.dumps(type(trainer.model_wrapped).__name__))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def learn(models: Path, data: Path, output: Path, world: str, processes: int, freeze: tuple[str, ...] = ()) -> None:
    """With parts frozen, every other example is one without images."""
    torch.set_num_threads(1)
    allow_fsdp_on_a_cpu()
    config = DopdConfig(
        str(output / "run"),
        max_steps=2,
        per_device_train_batch_size=ROLLOUTS // processes // 2,
        gradient_accumulation_steps=2,
        num_generations=2,
        max_completion_length=6,
        top_k=1,  # rollouts are greedy
        learning_rate=1e-3,
        weight_decay=0.0,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=1,
        eval_max_completion_length=2,
        disable_tqdm=True,
        seed=3,
        freeze=list(freeze),
    )
    examples = load_examples(str(data))
    if freeze:
        rows = [without_images(row) if number % 2 else row for number, row in enumerate(examples)]
        examples = Dataset.from_list(rows, features=examples.features)
    trainer = DopdTrainer(
        str(models / f"{world}-student"),
        str(models / f"{world}-teacher"),
        config,
        train_dataset=examples,
        eval_dataset=examples.select(range(5)),  # which two processes cannot share equally
        # One plan that needs nothing but scores of the policies, and one that projects the teacher again.
        objective=Dopd(top_k=16) if world == "text" else Opd(divergence="js", teacher_view="privileged"),
    )
    # Every third token ends a response, so that processes are not done with theirs at the same time.
    trainer.eos_token_ids += range(0, 640, 3)
    trainer.generation_config.eos_token_id = trainer.eos_token_ids
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, output / "model.safetensors")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        (output / "kind.json").write_text(json.dumps([type(trainer.model_wrapped).__name__, processes]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def learn_from_several(models: Path, data: Path, output: Path, other: Path) -> None:
    """Two teachers, in shards where there are several processes; of the first rank's two prompts neither is the other
    teacher's, of the second's both are."""
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", 1))
    config = DopdConfig(
        str(output / "run"),
        **SMALL,
        max_steps=2,
        per_device_train_batch_size=ROLLOUTS // world,
        top_k=1,  # rollouts are greedy
        learning_rate=1e-3,
        shuffle_dataset=False,
        save_strategy="no",
        shard_teacher=world > 1,
        scoring_batch_size=2,
    )
    examples = load_examples(str(data)).select(range(8))
    sources = ["own", "own", "others", "others"] * 2
    trainer = DopdTrainer(
        str(models / "text-student"),
        str(models / "text-teacher"),
        config,
        train_dataset=examples.remove_columns("source").add_column("source", sources),
        objective=Opd(divergence="js", teacher_view="privileged"),  # needs both teachers' hidden states
        teachers={"other": Teacher(str(other), sources=["others"])},
    )
    trainer.train()
    kinds = [type(trainer.models.wrapped(policy)).__name__ for policy in ("teacher", "teacher:other")]
    if trainer.accelerator.is_main_process:
        state = trainer.accelerator.get_state_dict(trainer.model)
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, output / "model.safetensors")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))
        (output / "kind.json").write_text(json.dumps(kinds))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def lose_a_teacher(models: Path, data: Path, output: Path, address: str) -> None:
    """The second rank's requests are refused from the second step on: what each rank then raises, and what is saved."""
    torch.set_num_threads(1)
    config = DopdConfig(
        str(output / "run"),
        **SMALL,
        max_steps=3,
        per_device_train_batch_size=2,
        save_steps=100,
    )
    folder = RunFolder(output / "run")
    trainer = DopdTrainer(
        str(models / "text-student"),
        ServedTeacher(address, ServerSettings(wait=1.0, timeout=5.0)),
        config,
        train_dataset=load_examples(str(data)),
        objective=Dopd(top_k=16),
        callbacks=[folder],
    )
    folder.attach(trainer)
    rank = trainer.accelerator.process_index
    [served] = trainer.teachers.served.values()
    ask, asked = served.ask, []

    def ask_of_a_wall(questions: Any) -> Any:
        asked.append(len(questions))
        if rank == 1 and len(asked) == 2:
            served.server.address = "http://127.0.0.1:9"
        return ask(questions)

    served.ask = ask_of_a_wall  # type: ignore[method-assign]
    try:
        trainer.train()
        told = "it ended well"
    except TeacherLost as error:
        told = str(error)
    (output / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.barrier()
