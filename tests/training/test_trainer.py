"""The trainer against independent computations, on small untrained models."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.distillation_trainer
from accelerate.state import AcceleratorState
from datasets import Dataset, Features
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DistillationTrainer

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.common.errors import UserError
from dopd_vl.core import Source
from dopd_vl.core.divergences import kl, log_softmax
from dopd_vl.evaluation.verifiers import VERIFIERS
from dopd_vl.models import image_token_ids
from dopd_vl.nano.tokenizer import MERGED
from dopd_vl.objectives import Dapd, Dopd, Opd
from dopd_vl.objectives.dopd import DopdSettings
from dopd_vl.objectives.dopd_loss import dopd_loss
from dopd_vl.run_folder.kept_rollouts import rollout_records
from dopd_vl.training.run import load_examples
from dopd_vl.training.sharding import TrainerModels
from tests.conftest import MakeTrainer


def logged(trainer: DopdTrainer, key: str) -> list[float]:
    return [row[key] for row in trainer.state.log_history if key in row]


def response_logits(folder: Path, trainer: DopdTrainer, views: list, responses: list[list[int]]) -> torch.Tensor:
    """Logits that predict each response token, from a fresh copy of a model and its ordinary forward pass."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = trainer.views.collate(views, responses, trainer.views.tokenizer.pad_token_id)
    length = max(map(len, responses))
    with torch.no_grad():
        return model(**inputs).logits[:, -length - 1 : -1]


def test_first_logged_loss_is_dopd_on_whole_logits(
    make_trainer: MakeTrainer, nano_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"top_k": 16, "beta_light": 0.5, "beta_weak": 0.2}
    trainer = make_trainer(objective=Dopd(**settings))
    seen: dict[str, Any] = {}
    generate = trainer._generate

    def remember(views: list) -> tuple:
        seen["views"] = views
        result = generate(views)
        seen["responses"] = result[1]
        return result

    monkeypatch.setattr(trainer, "_generate", remember)
    rows = {row["id"]: row for row in trainer.train_dataset}
    inputs: list[dict[str, Any]] = []
    score = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda batch: (inputs.extend(batch), score(batch))[1]
    )
    trainer.train()

    responses = seen["responses"]
    examples = [rows[row["id"]] for row in inputs]
    boxed = [trainer.views.view(row, "box_label") for row in examples]
    plain = [trainer.views.view(row) for row in examples]
    student = response_logits(nano_models / "vision-student", trainer, plain, responses)
    teacher = response_logits(nano_models / "vision-teacher", trainer, boxed, responses)
    privileged_student = response_logits(nano_models / "vision-student", trainer, boxed, responses)
    length = max(map(len, responses))
    ids = torch.tensor([r + [0] * (length - len(r)) for r in responses])
    mask = torch.arange(length)[None] < torch.tensor([len(r) for r in responses])[:, None]
    expected = dopd_loss(student, teacher, privileged_student, ids, mask, DopdSettings(**settings))

    assert logged(trainer, "loss")[0] == pytest.approx(expected.loss.item(), rel=1e-4)
    assert logged(trainer, "gap/threshold")[0] == pytest.approx(expected.thresholds.gap.item(), rel=1e-4)
    for code, name in enumerate(("LH", "LL", "HT", "HS")):
        share = (expected.regime == code).sum().item() / mask.sum().item()
        assert logged(trainer, f"token_share/{name}")[0] == pytest.approx(share, abs=1e-6)
        part = expected.token_loss[expected.regime == code].sum() / expected.token_loss.sum()
        assert logged(trainer, f"loss_share/{name}")[0] == pytest.approx(part.item(), rel=1e-3, abs=1e-6)


def test_vanilla_opd_sees_no_privilege_and_is_the_reverse_kl(
    make_trainer: MakeTrainer, nano_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(objective=Opd())
    seen: dict[str, Any] = {}
    generate = trainer._generate
    monkeypatch.setattr(
        trainer, "_generate", lambda views: (result := generate(views), seen.update(views=views, out=result))[0]
    )
    trainer.train()
    views, responses = seen["views"], seen["out"][1]
    assert not any("bbox" in trainer.views.tokenizer.decode(view.prompt_ids) for view in views)
    student = log_softmax(response_logits(nano_models / "vision-student", trainer, views, responses))
    teacher = log_softmax(response_logits(nano_models / "vision-teacher", trainer, views, responses))
    per_token = kl(student, teacher)
    expected = sum(row[: len(r)].mean().item() for row, r in zip(per_token, responses, strict=True)) / len(responses)
    assert logged(trainer, "loss")[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("world", ["vision", "text"])
def test_splitting_a_step_into_accumulation_slices_changes_no_loss_and_no_threshold(
    make_trainer: MakeTrainer, world: str
) -> None:
    # The same seed gives the same eight rollouts; thresholds and normalisation are of the whole optimizer step.
    whole = make_trainer(world, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    whole.train()
    slices = make_trainer(world, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    slices.train()
    for key in ("loss", "gap/threshold", "token_share/HT", "loss_share/LH", "grad_norm"):
        assert logged(slices, key)[0] == pytest.approx(logged(whole, key)[0], rel=2e-4), key
    for (name, a), (_, b) in zip(whole.model.named_parameters(), slices.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=name)


def test_siblings_share_their_prompt_and_their_group(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(Opd):
        groups: torch.Tensor

        def decide(self, scores: Any) -> Any:
            Watch.groups = scores.group
            return super().decide(scores)

    trainer = make_trainer(objective=Watch(), num_generations=2, per_device_train_batch_size=4)
    ids: list[str] = []
    score = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer,
        "_generate_and_score_completions",
        lambda batch: (ids.extend(row["id"] for row in batch), score(batch))[1],
    )
    trainer.train()
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert Watch.groups.tolist() == [0, 0, 1, 1]


def test_each_lesson_of_a_rollout_is_a_row_with_its_own_view_and_trajectory(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("text", Dapd(), num_generations=4, per_device_train_batch_size=8)
    seen: list[tuple[Any, Any]] = []
    score = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer, "_generate_and_score_completions", lambda batch: (seen.append((batch, p := score(batch))), p)[1]
    )
    drawn: list[int] = []
    generate = trainer._generate
    monkeypatch.setattr(trainer, "_generate", lambda prompts: (drawn.append(len(prompts)), generate(prompts))[1])
    trainer.train()
    assert drawn[0] == 2  # each rollout once, not once a lesson
    (batch, packed), tokenizer = seen[0], trainer.views.tokenizer
    ids, mask = packed["completion_ids"], packed["completion_mask"].bool()
    for first in (0, 4):
        example = batch[first]
        rollout, again, reference, once_more = (ids[b][mask[b]].tolist() for b in range(first, first + 4))
        assert rollout == again
        assert reference == once_more
        told = "\n".join([*example["privileged"]["hints_executed"], f"The final answer is: {example['answer']}"])
        assert reference == tokenizer(told)["input_ids"][:6]  # as long as the longest response
        prompts = [tokenizer.decode(packed["views"][b].prompt_ids) for b in range(first, first + 4)]
        assert prompts[0] == prompts[2]
        assert "Hints:" not in prompts[0]
        assert f"which may be right or wrong:\n{tokenizer.decode(rollout, skip_special_tokens=True)}" in prompts[1]
        assert "Hints:" in prompts[3]
    assert len(trainer.kept_rollouts) == 2


def test_an_example_that_cannot_be_shown_is_passed_over_by_id(make_trainer: MakeTrainer, vision_data: Path) -> None:
    dataset = load_examples(str(vision_data)).select(range(4))
    rows = dataset.to_list()
    rows[2]["images"] = [{"bytes": b"not an image", "path": None}]
    broken = type(dataset).from_list(rows, features=dataset.features)
    trainer = make_trainer(dataset=broken)
    trainer.train()
    assert [refusal.id for refusal in trainer.refusals] == [rows[2]["id"]]
    assert torch.isfinite(torch.tensor(logged(trainer, "loss"))).all()
    assert logged(trainer, "refused_examples") == [1.0]
    # 3 of the 4 rollouts were taught: the loss is a mean over those.
    assert logged(trainer, "token_loss")[0] > 0


def test_text_only_rows_train_beside_images(make_trainer: MakeTrainer, vision_data: Path, text_data: Path) -> None:
    rows = load_examples(str(vision_data)).to_list()[:2] + load_examples(str(text_data)).to_list()[:2]
    features = load_examples(str(vision_data)).features
    mixed = type(load_examples(str(vision_data))).from_list(rows, features=features)
    trainer = make_trainer(dataset=mixed, max_steps=2)
    trainer.train()
    assert trainer.refusals == []
    assert len(logged(trainer, "loss")) == 2


def test_the_student_cannot_emit_image_placeholders(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(per_device_train_batch_size=8, max_completion_length=24)
    forbidden = image_token_ids(trainer.model.config)
    assert len(forbidden) == 4
    # Make a placeholder by far the likeliest token; it must not be sampled all the same.
    head = trainer.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[forbidden] = 50 * head.weight.mean(0, keepdim=True)
    sampled: set[int] = set()
    generate = trainer._generate
    trainer._generate = lambda views: (  # type: ignore[method-assign]
        result := generate(views),
        sampled.update(token for ids in result[1] for token in ids),
    )[0]
    trainer.train()
    assert sampled
    assert not sampled & set(forbidden)


def test_gradient_reaches_the_student_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = {name: p.clone() for name, p in trainer.teacher_model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.teacher_model.named_parameters():
        assert parameter.grad is None, name
        assert torch.equal(parameter, before[name]), name


def test_lora_trains_adapters_and_leaves_the_base(make_trainer: MakeTrainer) -> None:
    from peft import LoraConfig

    trainer = make_trainer(
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"), max_steps=2
    )
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= trainable


def test_kept_rollouts_hold_the_routing_of_each_token(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(rollouts_to_keep=2)
    trainer.train()
    records = rollout_records(trainer.kept_rollouts, trainer.renderer, tmp_path / "images")
    assert len(records) == 2
    for record in records:
        json.dumps(record)
        columns = ("regime", "gap", "weight", "logp/teacher/privileged", "logp/student/privileged")
        assert {len(record[column]) for column in columns} == {len(record["tokens"])}
        for regime, weight in zip(record["regime"], record["weight"], strict=True):
            assert weight == pytest.approx({0: 0.6, 1: 0.3, 2: 1.0, 3: 0.6}[regime])


def test_larger_images_are_made_smaller_for_every_view_and_for_whoever_loads_the_student(
    make_trainer: MakeTrainer, vision_data: Path, tmp_path: Path
) -> None:
    limit = 6 * MERGED
    whole, limited = make_trainer().views, make_trainer(max_pixels=limit)
    for example in load_examples(str(vision_data)).select(range(4)):
        for variant in ("none", "box_label"):
            before, after = (views.view(example, variant) for views in (whole, limited.views))
            assert sum(map(bool, before.mm_token_type_ids)) > 6 >= sum(map(bool, after.mm_token_type_ids)) > 0
            assert all(image.width * image.height <= limit for image in after.images)
    limited.save_model(str(tmp_path / "student"))
    assert AutoProcessor.from_pretrained(tmp_path / "student").image_processor.size["longest_edge"] == limit
    with pytest.raises(UserError, match=r"data\.max_pixels: 8 is less than the model's smallest image"):
        make_trainer(max_pixels=8)


def test_evaluation_scores_every_variant_with_the_verifier(make_trainer: MakeTrainer, vision_data: Path) -> None:
    trainer = make_trainer(eval_variants=["none", "box_label"], eval_strategy="no")
    metrics = trainer.evaluate(load_examples(str(vision_data)).select(range(6)))
    assert metrics["eval_accuracy"] == 0.0
    assert metrics["eval_box_label_accuracy"] == 0.0
    assert metrics["eval_entropy"] > 0
    assert {key for key in metrics if key.startswith("eval_accuracy/")}


def test_one_process_has_no_other_to_share_its_teacher_with(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match=r"training\.shard_teacher: one process"):
        make_trainer("text", shard_teacher=True)


def test_a_rollout_count_that_does_not_divide_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_generations=3 does not divide the 8 rollouts"):
        DopdConfig(str(tmp_path), per_device_train_batch_size=8, num_generations=3)


def test_seams_of_trl_are_where_this_trainer_expects_them() -> None:
    # An upgrade of TRL that moves one of these would silently train on something else.
    expected = {
        "_set_signature_columns_if_needed": ["self"],
        "_get_train_sampler": ["self", "dataset"],
        "_tokenize_prompts": ["self", "prompts"],
        "_generate": ["self", "prompts"],
        "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields", "has_tool_images"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "unwrapped_student", "inputs", "num_items_in_batch"],
        "log": ["self", "logs", "start_time"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(DistillationTrainer, name)).parameters) == parameters, name
    hidden = list(inspect.signature(DistillationTrainer._get_last_hidden_state).parameters)
    assert hidden[:5] == ["self", "unwrapped_model", "input_ids", "attention_mask", "logits_to_keep"]
    assert {"pixel_values", "image_grid_thw", "mm_token_type_ids"} <= set(hidden)


def test_source_names_are_stable() -> None:
    assert str(Source("teacher", "privileged")) == "teacher/privileged"


def test_processor_of_the_student_is_loaded_left_padded(make_trainer: MakeTrainer, nano_models: Path) -> None:
    trainer = make_trainer()
    assert trainer.views.tokenizer.padding_side == "left"
    assert isinstance(trainer.processing_class, type(AutoProcessor.from_pretrained(nano_models / "vision-student")))


def test_a_process_keeps_to_one_device(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many GPUs it sees: TRL and transformers would spread models and batches over all of them."""
    asked: list[dict[str, Any]] = []
    create = trl.trainer.distillation_trainer.create_model_from_path

    def watched(path: str, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return create(path, **kwargs)

    monkeypatch.setattr(trl.trainer.distillation_trainer, "create_model_from_path", watched)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    trainer = make_trainer(per_device_train_batch_size=4, use_cpu=False)
    assert [kwargs["device_map"] for kwargs in asked] == [None, None]
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == 4


def test_the_teacher_is_on_the_device_whoever_placed_it_elsewhere(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate leaves a model that is only evaluated on the CPU where the student is to be sharded."""
    trainer = make_trainer()
    assert {weight.device.type for weight in trainer.teacher_model.parameters()} == {"cpu"}
    monkeypatch.setitem(AcceleratorState._shared_state, "device", torch.device("meta"))
    assert TrainerModels(trainer).device.type == "meta"
    assert {weight.device.type for weight in trainer.teacher_model.parameters()} == {"meta"}


def test_prompts_in_parts_are_learned_from_as_those_with_markers(make_trainer: MakeTrainer) -> None:
    def in_parts(row: dict[str, Any]) -> dict[str, Any]:
        parts: list[list[dict[str, str | None]]] = []
        for message in row["prompt"]:
            texts = message["content"].split("<image>")
            said = [{"type": "text", "text": text} if text else None for text in texts]
            mixed = [one for text in said for one in ({"type": "image", "text": None}, text)][1:]
            parts.append([one for one in mixed if one is not None])
        return {
            "prompt": [{"role": m["role"], "content": p} for m, p in zip(row["prompt"], parts, strict=True)],
        }

    written = make_trainer(max_completion_length=3, top_k=1)
    rows = [row | in_parts(row) for row in written.train_dataset]
    features = Dataset.from_list([{"prompt": row["prompt"]} for row in rows]).features
    dataset = Dataset.from_list(rows, features=Features({**written.train_dataset.features, **features}))
    parted = make_trainer(max_completion_length=3, top_k=1, dataset=dataset)
    for trainer in (written, parted):
        trainer.train()
        assert trainer.refused == 0
    assert logged(parted, "loss") == pytest.approx(logged(written, "loss"), rel=1e-5)


def test_a_verifier_that_fails_ends_no_run(
    make_trainer: MakeTrainer, text_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(response: str, answer: str) -> bool:
        raise ZeroDivisionError("of a response")

    few = load_examples(str(text_data), 3)
    trainer = make_trainer("text", Opd(), eval_dataset=few, eval_strategy="steps", eval_steps=1)
    for task in VERIFIERS:
        monkeypatch.setitem(VERIFIERS, task, fail)
    with pytest.warns(UserWarning, match="came to no verdict") as told:
        trainer.train()
    assert len([warning for warning in told if "came to no verdict" in str(warning.message)]) == 1
    [step] = [row for row in trainer.state.log_history if "undecided_rollouts" in row]
    assert (step["undecided_rollouts"], step["rollout_accuracy"]) == (1.0, 0.0)
    [scored] = [row for row in trainer.state.log_history if "eval_accuracy" in row]
    assert (scored["eval_undecided"], scored["eval_accuracy"]) == (3.0, 0.0)
