"""What a kept rollout holds, against independent computations, and what keeping none costs: nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from dopd_vl import DopdTrainer
from dopd_vl.objectives import Dopd, Objective, Opd
from dopd_vl.run_folder import kept_rollouts
from dopd_vl.run_folder.kept_images import LONGEST_SIDE, read_image, save_image
from dopd_vl.run_folder.kept_rollouts import ALTERNATIVES, LEAST_PROBABILITY, KeptRollouts, rollout_records
from dopd_vl.training import trainer as trainer_module
from dopd_vl.training.run import load_examples
from dopd_vl.views import Request
from tests.conftest import MakeTrainer

Train = Callable[..., DopdTrainer]


@pytest.fixture
def train(make_trainer: MakeTrainer) -> Train:
    def run(objective: Objective | None = None, dataset: Any = None, **settings: Any) -> DopdTrainer:
        slices = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_generations": 2}
        trainer = make_trainer("vision", objective, dataset, **{**slices, "rollouts_to_keep": 8, **settings})
        trainer.train()
        return trainer

    return run


def records_of(trainer: DopdTrainer, folder: Path) -> list[dict[str, Any]]:
    records = rollout_records(trainer.kept_rollouts, trainer.renderer, folder)
    return json.loads(json.dumps(records))


def test_the_losses_of_all_tokens_are_the_loss_that_is_logged(train: Train, tmp_path: Path) -> None:
    # Two slices of a shuffled batch: each loss must find its way back to its rollout.
    trainer = train(Dopd(top_k=16))
    records = records_of(trainer, tmp_path / "images")
    assert len(records) == 4
    losses = [loss for record in records for loss in record["loss"]]
    assert len(losses) == sum(len(record["tokens"]) for record in records)
    (logged,) = [row["token_loss"] for row in trainer.state.log_history if "token_loss" in row]
    assert sum(losses) / len(losses) == pytest.approx(logged, abs=1e-4)
    shares = {name: row[f"loss_share/{name}"] for row in trainer.state.log_history if "token_loss" in row
              for name in ("LH", "LL", "HT", "HS")}  # fmt: skip
    for code, share in enumerate(shares.values()):
        of_regime = sum(
            loss
            for record in records
            for loss, regime in zip(record["loss"], record["regime"], strict=True)
            if regime == code
        )
        assert of_regime / sum(losses) == pytest.approx(share, abs=1e-3)


def test_alternatives_are_the_likeliest_tokens_of_each_policy(
    train: Train, nano_models: Path, vision_data: Path, tmp_path: Path
) -> None:
    trainer = train(learning_rate=0.0)
    examples = {example["id"]: example for example in load_examples(str(vision_data))}
    tokenizer = trainer.views.tokenizer
    shown = {"student/plain": ("student", "none"), "teacher/privileged": ("teacher", "box_label")}
    for record, rollout in zip(records_of(trainer, tmp_path / "i"), trainer.kept_rollouts, strict=True):
        assert set(record["alternatives"]) == {*shown, "student/privileged"}
        for source, (model_name, variant) in shown.items():
            (view,) = trainer.views.view_all([Request(examples[record["id"]], variant)])
            model = AutoModelForImageTextToText.from_pretrained(nano_models / f"vision-{model_name}").eval()
            inputs = trainer.views.collate([view], [list(rollout.response)], tokenizer.pad_token_id)
            length = len(rollout.response)
            with torch.no_grad():
                probabilities = model(**inputs).logits[0, -length - 1 : -1].softmax(-1)
            for n, pairs in enumerate(record["alternatives"][source]):
                values, ids = probabilities[n].topk(ALTERNATIVES)
                expected = [round(p, 3) for p in values.tolist()]
                assert [p for _, p in pairs] == pytest.approx([p for p in expected if p >= LEAST_PROBABILITY], abs=2e-3)
                assert pairs[0][0] == tokenizer.decode([ids[0]])
                sampled = probabilities[n, rollout.response[n]].log().item()
                assert record[f"logp/{source}"][n] == pytest.approx(sampled, abs=1e-3)


def test_a_view_is_kept_as_the_policy_had_it_once_an_example(train: Train, vision_data: Path, tmp_path: Path) -> None:
    trainer = train()
    first, second, *_ = records_of(trainer, tmp_path / "images")
    assert first["id"] == second["id"]
    assert not {"views", "images", "boxes"} & set(second)
    plain, privileged = first["views"]
    assert (plain["sources"], plain["variant"]) == (["student/plain"], "none")
    assert (privileged["sources"], privileged["variant"]) == (["teacher/privileged", "student/privileged"], "box_label")
    assert "bbox_2d" in privileged["prompt"]
    assert "bbox_2d" not in plain["prompt"]
    for view in (plain, privileged):
        assert view["prompt"].startswith("<|im_start|>")
        assert "tokens]" in view["prompt"]
        assert "<|image_pad|>" not in view["prompt"]
        assert "images" not in view
    (example,) = [e for e in load_examples(str(vision_data)) if e["id"] == first["id"]]
    (name,) = first["images"]
    data = read_image(name, tmp_path / "images")
    assert data is not None
    with Image.open(tmp_path / "images" / name) as image:
        width, height = image.size
    assert [box["label"] for box in first["boxes"]] == [box["label"] for box in example["privileged"]["boxes"]]
    for kept, box in zip(first["boxes"], example["privileged"]["boxes"], strict=True):
        x1, y1, x2, y2 = (value / 1000 for value in kept["bbox"])
        assert [x1 * width, y1 * height, x2 * width, y2 * height] == pytest.approx(box["bbox"], abs=0.1)


def test_a_view_that_shows_another_image_keeps_it(train: Train, tmp_path: Path) -> None:
    trainer = train(teacher_variant="degraded")
    (first, *_) = records_of(trainer, tmp_path / "images")
    by_variant = {view["variant"]: view for view in first["views"]}
    assert set(by_variant) == {"none", "degraded", "box_label"}
    (degraded,) = by_variant["degraded"]["images"]
    assert degraded not in first["images"]
    assert read_image(degraded, tmp_path / "images") is not None
    assert "images" not in by_variant["none"]


def test_no_rollouts_kept_is_no_work_done(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    score = kept_rollouts.score_tokens
    monkeypatch.setattr(kept_rollouts, "score_tokens", lambda *args: looked_at.append(len(args[1])) or score(*args))
    assert len(train(rollouts_to_keep=0).kept_rollouts) == 0
    assert looked_at == []
    assert len(train(rollouts_to_keep=3).kept_rollouts) == sum(looked_at) == 3


class Reads:
    """Counts what makes the host wait for the device, within the functions that it has been put around."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count, self.inside = 0, False
        for name in ("cpu", "tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            self.count += self.inside
            return method(*args, **kwargs)

        return read

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False

        return call


@pytest.mark.parametrize("length", [3, 24])
def test_the_numbers_leave_the_device_in_one_copy_and_the_tokens_are_decoded_in_one_call(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    reads = Reads(monkeypatch)
    monkeypatch.setattr(trainer_module, "keep_rollouts", reads.around(trainer_module.keep_rollouts))
    monkeypatch.setattr(KeptRollouts, "learned", reads.around(KeptRollouts.learned))
    trainer = train(max_completion_length=length)
    assert reads.count == 0
    decoded: list[int] = []
    decode = trainer.views.tokenizer.decode
    monkeypatch.setattr(trainer.views.tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    monkeypatch.setattr(kept_rollouts, "prompt_text", lambda view, tokenizer: "")
    records = reads.around(rollout_records)(trainer.kept_rollouts, trainer.renderer, tmp_path / "images")
    assert reads.count == len(decoded) == 1
    assert max(len(record["tokens"]) for record in records) == length


def test_what_is_kept_of_a_rollout_depends_on_no_other_and_on_no_chunk(train: Train, tmp_path: Path) -> None:
    every = records_of(train(), tmp_path / "images")
    (alone,) = records_of(train(rollouts_to_keep=1, logits_chunk_size=3), tmp_path / "images")
    same = every[0]
    assert alone["tokens"] == same["tokens"]
    for name in ("loss", "logp/student/plain", "logp/teacher/privileged"):
        assert alone[name] == pytest.approx(same[name], abs=2e-4)
    for ours, theirs in zip(alone["alternatives"].values(), same["alternatives"].values(), strict=True):
        assert [[token for token, _ in place] for place in ours] == [[token for token, _ in place] for place in theirs]


def test_keeping_rollouts_changes_nothing_of_the_training(train: Train) -> None:
    kept, none = (train(rollouts_to_keep=count, max_steps=2) for count in (8, 0))
    assert [row.get("loss") for row in kept.state.log_history] == [row.get("loss") for row in none.state.log_history]
    for ours, theirs in zip(kept.model.parameters(), none.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_refused_example_leaves_no_rollout(train: Train, vision_data: Path, tmp_path: Path) -> None:
    def spoil(example: dict[str, Any], number: int) -> dict[str, Any]:
        # Half of the examples, so that every batch has good ones and bad ones.
        if number % 2:
            example["prompt"][-1]["content"] += " and again" * 300
        return example

    dataset = load_examples(str(vision_data)).map(spoil, with_indices=True)
    spoiled = {example["id"] for example in dataset if "and again" in example["prompt"][-1]["content"]}
    trainer = train(dataset=dataset, per_device_train_batch_size=8, max_prompt_length=200)
    ids = {record["id"] for record in records_of(trainer, tmp_path / "images")}
    assert trainer.refusals
    assert ids
    assert not ids & spoiled


def test_an_objective_that_scores_the_plain_student_keeps_what_it_scored(train: Train, tmp_path: Path) -> None:
    trainer = train(Opd(form="policy_gradient"))
    for record in records_of(trainer, tmp_path / "images"):
        assert "regime" not in record
        assert len(record["advantage"]) == len(record["loss"]) == len(record["tokens"])
        assert "student/plain" in record["alternatives"]


def test_an_image_is_kept_once_and_no_larger_than_one_looks_at(tmp_path: Path) -> None:
    image = Image.effect_noise((1000, 500), 80).convert("RGB")
    name = save_image(image, tmp_path / "images")
    assert save_image(image.copy(), tmp_path / "images") == name
    assert [path.name for path in (tmp_path / "images").iterdir()] == [name]
    with Image.open(tmp_path / "images" / name) as kept:
        assert kept.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert read_image(name, tmp_path / "images") is not None
