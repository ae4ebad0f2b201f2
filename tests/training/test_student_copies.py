"""The student at other times: its start and its slow average; and what siblings are shown."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.core import Source
from dopd_vl.objectives import Dopd, Opsd, Sdft
from dopd_vl.objectives.common import PLAIN_STUDENT
from dopd_vl.training.run import load_examples
from dopd_vl.training.student_copies import StudentCopies, trained
from dopd_vl.views import processor_for
from dopd_vl.views.rollouts import ROLLOUT_VIEWS, ViewRenderer, render_with_rollouts, right_rollouts_to_show

IDS = torch.arange(5, 15).unsqueeze(0)


def load(models: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(models / "text-student").eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


@torch.no_grad()
def disturb(model: torch.nn.Module, by: float) -> None:
    for _, weight in trained(model):
        weight += by


def test_start_and_average_act_and_leave_the_student_as_it_was(nano_models: Path) -> None:
    model = load(nano_models)
    first = logits(model)
    times = StudentCopies(model, {"student", "start", "average"}, average_rate=0.25)
    times.begin(model, None)
    disturb(model, 0.04)
    now = logits(model)
    assert not torch.allclose(now, first, atol=1e-3)
    times.after_step(1)
    average = copy.deepcopy(load(nano_models))
    disturb(average, 0.25 * 0.04)
    for _ in range(2):
        with times.acting("start"):
            assert torch.equal(logits(model), first)
        with times.acting("average"):
            assert torch.allclose(logits(model), logits(average), atol=1e-5)
        with times.acting("student"):
            assert torch.equal(logits(model), now)
        assert torch.equal(logits(model), now)
    assert torch.equal(times.head("start")[0], load(nano_models).get_output_embeddings().weight)
    assert torch.equal(times.head("student")[0], model.get_output_embeddings().weight)


def test_only_what_is_asked_for_is_kept(nano_models: Path) -> None:
    times = StudentCopies(load(nano_models), {"student", "teacher"}, average_rate=0.0)
    times.begin(load(nano_models), None)
    assert (times.start, times.average, times._first) == (None, None, None)


def test_with_lora_the_start_is_the_base_and_costs_no_copy(nano_models: Path) -> None:
    base = logits(load(nano_models))
    model = get_peft_model(load(nano_models), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    times = StudentCopies(model, {"start", "average"}, average_rate=0.5)
    times.begin(model, None)
    assert times.start is None
    assert times._first is None
    assert times.average is not None
    assert all("lora" in name for name in times.average.weights)
    adapted = logits(model)
    assert not torch.allclose(adapted, base, atol=1e-3)
    with times.acting("start"):
        assert torch.allclose(logits(model), base, atol=1e-6)
    with times.acting("average"):
        assert torch.equal(logits(model), adapted)
    assert torch.equal(logits(model), adapted)


def test_an_average_is_saved_whole_and_taken_up_again(nano_models: Path, tmp_path: Path) -> None:
    model = load(nano_models)
    times = StudentCopies(model, {"average"}, average_rate=0.5)
    times.begin(model, None)
    disturb(model, 0.1)
    times.after_step(1)
    times.save(tmp_path, write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["average.safetensors"]
    again = StudentCopies(model, {"average"}, average_rate=0.5)
    again.begin(model, tmp_path)
    assert again.average is not None
    assert times.average is not None
    assert all(torch.equal(weight, again.average.weights[name]) for name, weight in times.average.weights.items())
    with pytest.raises(ValueError, match=r"average.safetensors is missing"):
        again.begin(model, tmp_path / "elsewhere")
    other = get_peft_model(load(nano_models), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="holds other weights than this student's"):
        StudentCopies(other, {"average"}, 0.5).begin(other, tmp_path)


class Remember(TrainerCallback):
    """The student's weights before training and after every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: weight.detach().clone() for name, weight in trained(model)})

    def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: weight.detach().clone() for name, weight in trained(model)})


def trainer(models: Path, data: Path, folder: Path, objective: Any, **more: Any) -> DopdTrainer:
    arguments = DopdConfig(
        str(folder / "run"),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=1,
        max_completion_length=6,
        learning_rate=1e-2,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    return DopdTrainer(
        str(models / "text-student"), None, arguments, load_examples(str(data)), objective=objective, **more
    )


def test_the_average_follows_once_per_optimizer_step(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    remember = Remember()
    run = trainer(nano_models, text_data, tmp_path, Sdft(average_rate=0.1), callbacks=[remember])
    run.train()
    average = remember.weights[0]
    for weights in remember.weights[1:]:
        average = {name: 0.9 * average[name] + 0.1 * weight for name, weight in weights.items()}
    assert len(remember.weights) == 4
    assert run.policies.copies.average is not None
    for name, weight in run.policies.copies.average.weights.items():
        assert torch.allclose(weight, average[name], atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(average.values(), remember.weights[-1].values(), strict=True))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_fixed_self_teacher_stays_where_it_began(
    lora: bool, nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    more = {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")} if lora else {}
    run = trainer(nano_models, text_data, tmp_path, Opsd(), **more)
    run.train()
    model = run.accelerator.unwrap_model(run.model).eval()
    assert not torch.allclose(logits(model), logits(load(nano_models)), atol=1e-3)
    with run.policies.copies.acting("start"):
        assert torch.allclose(logits(model), logits(load(nano_models)), atol=1e-6)


@pytest.mark.parametrize("objective", [Opsd(), Sdft(average_rate=0.1)], ids=["start", "average"])
def test_a_head_that_is_trained_beside_adapters_is_the_copys_own_where_the_copy_teaches(
    objective: Any, nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    run = trainer(nano_models, text_data, tmp_path, objective, peft_config=lora)
    run.train()
    (policy,) = run.policies.copies.policies - {"student"}
    source = Source(policy, "privileged")
    taught_by = run.policies.projection(source, torch.zeros(1, 1, 1), acting=False).weight
    with run.policies.copies.acting(policy):
        expected = run.policies.projection(source, torch.zeros(1, 1, 1)).weight.clone()
    assert torch.equal(taught_by, expected)
    assert not torch.allclose(taught_by, run.policies.projection(PLAIN_STUDENT, torch.zeros(1, 1, 1)).weight)


def test_a_missing_teacher_is_named(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objective 'dopd' needs a teacher_model"):
        trainer(nano_models, text_data, tmp_path, Dopd())


def test_a_snapshot_is_renewed_only_when_it_is_time(nano_models: Path) -> None:
    model = load(nano_models)
    first = logits(model)
    times = StudentCopies(model, {"average"}, average_rate=1.0, average_every=3)
    times.begin(model, None)
    for step in range(1, 5):
        disturb(model, 0.02)
        now = logits(model) if step == 3 else None
        times.after_step(step)
        with times.acting("average"):
            shown = logits(model)
        if step < 3:
            assert torch.equal(shown, first)
        elif step == 3:
            renewed = now
            assert torch.equal(shown, renewed)
        else:
            assert torch.equal(shown, renewed)


def test_a_sibling_is_the_next_right_rollout_of_the_same_prompt() -> None:
    verdicts = [True, False, True, None, False, False, True, False]
    assert right_rollouts_to_show(verdicts, 4) == [2, 2, 0, 0, 6, 6, None, 6]
    assert right_rollouts_to_show([True, True], 1) == [None, None]


@pytest.mark.parametrize("view", list(ROLLOUT_VIEWS))
def test_a_view_with_a_rollout_ends_in_its_response(view: str, nano_models: Path, text_data: Path) -> None:
    from transformers import AutoTokenizer

    model = load(nano_models)
    tokenizer = AutoTokenizer.from_pretrained(nano_models / "text-student")
    views = processor_for(model.config, tokenizer)
    example = load_examples(str(text_data))[0]
    plain = views.view(example)
    control = tokenizer.eos_token
    source = Source("teacher", view)
    by_source, used = render_with_rollouts(
        view,
        ViewRenderer(views, {}),
        [example] * 3,
        [plain] * 3,
        ["Answer: 7", f"bad {control}", "Answer: 9"],
        [2, 1, None],
        [source, PLAIN_STUDENT],
    )
    assert list(by_source) == [source]
    shown = by_source[source]
    assert used == [2, None, None]
    assert shown[1] is plain
    assert shown[2] is plain
    question = example["prompt"][-1]["content"]
    assert f"{question}\n\n{ROLLOUT_VIEWS[view].format(response='Answer: 9')}" in tokenizer.decode(shown[0].prompt_ids)
