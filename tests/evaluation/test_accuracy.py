"""Greedy accuracy: the batch size changes nothing, entropy is the model's, a bad example is passed over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dopd_vl.core.divergences import entropy, log_softmax
from dopd_vl.evaluation.accuracy import Prediction, cut_at_end, generate, predict, summarise
from dopd_vl.evaluation.calibration import calibration_error
from dopd_vl.evaluation.run import load_model
from dopd_vl.training.run import load_examples
from dopd_vl.views import Request, View


@pytest.fixture(scope="module")
def loaded(nano_models: Path) -> tuple[Any, Any]:
    return load_model(str(nano_models / "vision-student"))


def test_batch_size_changes_no_prediction(loaded: tuple[Any, Any], vision_data: Path) -> None:
    model, views = loaded
    rows = load_examples(str(vision_data), 5)
    together, _ = predict(model, views, rows, max_new_tokens=5, batch_size=5)
    alone, _ = predict(model, views, rows, max_new_tokens=5, batch_size=1)
    assert [p.id for p in together] == list(rows["id"])
    for a, b in zip(together, alone, strict=True):
        assert (a.response, a.correct, a.tokens, a.clipped) == (b.response, b.correct, b.tokens, b.clipped)
        assert a.entropy == pytest.approx(b.entropy, rel=1e-4)


def test_entropy_is_that_of_the_models_own_distribution(loaded: tuple[Any, Any], vision_data: Path) -> None:
    model, views = loaded
    row = load_examples(str(vision_data), 1)[0]
    (prediction,), _ = predict(model, views, [row], "box_label", max_new_tokens=4)
    view = views.view(row, "box_label")
    ids: list[int] = []
    entropies = []
    for _ in range(prediction.tokens):
        inputs = views.collate([view], [ids], 0)
        with torch.no_grad():
            logp = log_softmax(model(**inputs).logits[0, -1])
        entropies.append(entropy(logp).item())
        forbidden = [model.config.image_token_id, model.config.video_token_id]
        forbidden += [model.config.vision_start_token_id, model.config.vision_end_token_id]
        logp[forbidden] = -torch.inf
        ids.append(int(logp.argmax()))
    assert prediction.response == views.tokenizer.decode(ids, skip_special_tokens=True)
    assert prediction.entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_adapters_that_change_nothing_change_no_prediction(nano_models: Path, vision_data: Path) -> None:
    model, views = load_model(str(nano_models / "vision-student"))
    rows = load_examples(str(vision_data), 2)
    before, _ = predict(model, views, rows, max_new_tokens=4)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))  # its B is zero at first
    after, _ = predict(adapted, views, rows, max_new_tokens=4)
    assert [(p.response, p.entropy) for p in after] == [(p.response, pytest.approx(p.entropy)) for p in before]


def test_an_example_that_cannot_be_shown_is_passed_over(loaded: tuple[Any, Any], vision_data: Path) -> None:
    model, views = loaded
    rows = [dict(row) for row in load_examples(str(vision_data), 3)]
    rows[1]["images"] = [{"bytes": b"no image", "path": None}]
    seen: list[int] = []
    predictions, refused = predict(
        model,
        views,
        rows,
        max_new_tokens=2,
        batch_size=2,
        on_batch=lambda batch: seen.append(len(batch.predictions) + len(batch.refused)),
    )
    assert [p.id for p in predictions] == [rows[0]["id"], rows[2]["id"]]
    assert [identifier for identifier, _ in refused] == [rows[1]["id"]]
    assert seen == [2, 1]


def test_summary_counts_by_source() -> None:
    def scored(source: str, correct: bool) -> Prediction:
        return Prediction("x", source, "", "", correct, tokens=4, clipped=False, entropy=0.5, confidence=0.75)

    total = summarise([scored("a", True), scored("a", False), scored("b", True)], refused=2)
    assert total.accuracy == pytest.approx(2 / 3)
    assert total.by_source == {"a": 0.5, "b": 1.0}
    assert (total.count, total.refused, total.entropy) == (3, 2, 0.5)
    assert total.calibration_error == pytest.approx(0.75 - 2 / 3)


def test_responses_without_a_verdict_count_as_neither_right_nor_wrong() -> None:
    def judged(source: str, correct: bool | None) -> Prediction:
        return Prediction("x", source, "", "", correct, tokens=4, clipped=False, entropy=0.5, confidence=0.75)

    total = summarise([judged("a", True), judged("a", None), judged("b", None)])
    assert (total.accuracy, total.by_source) == (1.0, {"a": 1.0})
    assert (total.count, total.unscored) == (3, 2)


def test_confidence_is_the_probability_of_the_whole_response(loaded: tuple[Any, Any], vision_data: Path) -> None:
    model, views = loaded
    rows = [dict(row) for row in load_examples(str(vision_data), 3)]
    predictions, _ = predict(model, views, rows, max_new_tokens=8, batch_size=3)
    shown = views.view_all([Request(row, "none") for row in rows])
    for view, prediction in zip(shown, predictions, strict=True):
        assert isinstance(view, View)
        (ids,) = generate(model, views, [view], 8)
        inputs = views.collate([view], [ids], views.tokenizer.pad_token_id)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -len(ids) - 1 : -1].double()
        expected = logits.log_softmax(-1)[range(len(ids)), ids].sum().exp()
        assert prediction.confidence == pytest.approx(float(expected), rel=1e-4)


def test_calibration_error_weighs_each_bin_by_its_responses() -> None:
    sure_and_right = [(0.95, True)] * 3
    sure_and_wrong = [(1.0, False)]
    unsure = [(0.2, False), (0.25, True)]
    last_bin = abs(3 * 0.95 + 1.0 - 3)
    assert calibration_error([*sure_and_right, *sure_and_wrong, *unsure]) == pytest.approx((last_bin + 0.55) / 6)
    assert calibration_error([(1.0, True), (0.0, False)]) == 0.0
    assert calibration_error([]) == 0.0


def test_summary_of_nothing_measures_nothing() -> None:
    total = summarise([], refused=2)
    measured = (total.accuracy, total.entropy, total.mean_tokens, total.clipped, total.calibration_error)
    assert measured == (None,) * 5
    assert (total.by_source, total.count, total.refused) == ({}, 0, 2)


@pytest.mark.parametrize(("ids", "kept"), [([5, 9, 5, 9], [5, 9]), ([9], [9]), ([5, 6], [5, 6]), ([], [])])
def test_responses_end_with_their_first_end_token(ids: list[int], kept: list[int]) -> None:
    assert cut_at_end(ids, [9]) == kept
