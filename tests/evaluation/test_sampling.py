"""Sampled responses: what is the same, what differs, and what a seed covers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dopd_vl.evaluation.accuracy import Asking, Batch, batch_items, count_batches, predict_batches
from dopd_vl.evaluation.generation import PresencePenalty, seeded
from dopd_vl.evaluation.run import load_model
from dopd_vl.evaluation.sampling import Sampling
from dopd_vl.training.run import load_examples

SAMPLING = Sampling(samples=3, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def loaded(nano_models: Path) -> tuple[Any, Any]:
    return load_model(str(nano_models / "text-student"))


def responses(batches: list[Batch]) -> dict[tuple[int, int], str]:
    return {(p.index, p.sample): p.response for batch in batches for p in batch.predictions}


def test_every_question_gets_k_responses_that_differ(loaded: tuple[Any, Any], text_data: Path) -> None:
    rows = load_examples(str(text_data), 4)
    got = responses(list(predict_batches(*loaded, rows, Asking(max_new_tokens=6, sampling=SAMPLING), 5)))
    assert set(got) == {(index, sample) for index in range(4) for sample in range(3)}
    assert all(len({got[index, sample] for sample in range(3)}) > 1 for index in range(4))


def test_a_batch_is_the_same_whether_or_not_others_go_before_it(loaded: tuple[Any, Any], text_data: Path) -> None:
    rows = load_examples(str(text_data), 4)
    asking = Asking(max_new_tokens=6, sampling=SAMPLING)
    whole = list(predict_batches(*loaded, rows, asking, 5))
    torch.manual_seed(99)
    (alone,) = predict_batches(*loaded, rows, asking, 5, numbers=[1])
    assert alone == whole[1]
    other = Asking(max_new_tokens=6, sampling=Sampling(samples=3, temperature=1.0, seed=6))
    assert responses(list(predict_batches(*loaded, rows, other, 5))) != responses(whole)


def test_a_question_that_cannot_be_shown_is_refused_once(loaded: tuple[Any, Any], text_data: Path) -> None:
    rows = [dict(row) for row in load_examples(str(text_data), 2)]
    rows[0]["images"] = [{"bytes": b"no image", "path": None}]
    batches = list(predict_batches(*loaded, rows, Asking(max_new_tokens=3, sampling=SAMPLING), 2))
    assert [(number, index) for number, batch in enumerate(batches) for index, _ in batch.refused] == [(0, 0)]
    assert set(responses(batches)) == {(1, 0), (1, 1), (1, 2)}


def test_batches_hold_every_response_once() -> None:
    places = [batch_items(number, 7, 4, SAMPLING) for number in range(count_batches(7, 4, SAMPLING))]
    assert [item for batch in places for item in batch] == [(i, s) for i in range(7) for s in range(3)]
    assert batch_items(count_batches(7, 4, SAMPLING), 7, 4, SAMPLING) == []


def test_presence_is_penalised_once_and_the_prompt_does_not_count() -> None:
    # Prompt [1, 2], response so far [3, 3]; vocabulary 0 to 4. Only 3 is present.
    penalised = PresencePenalty(1.5, prompt_length=2)(torch.tensor([[1, 2, 3, 3]]), torch.zeros(1, 5))
    assert penalised.tolist() == [[0.0, 0.0, 0.0, -1.5, 0.0]]


def test_a_great_penalty_keeps_tokens_from_coming_twice(loaded: tuple[Any, Any], text_data: Path) -> None:
    model, views = loaded
    rows = load_examples(str(text_data), 1)
    plain = Asking(max_new_tokens=8)
    (batch,) = predict_batches(model, views, rows, plain, 1)
    ids = views.tokenizer(batch.predictions[0].response)["input_ids"]
    assert len(set(ids)) < len(ids), "the untrained model was expected to repeat itself"
    (batch,) = predict_batches(model, views, rows, Asking(max_new_tokens=8, sampling=Sampling(presence_penalty=2.0)), 1)
    assert len(set(views.tokenizer(batch.predictions[0].response)["input_ids"])) > len(set(ids))


def test_seeded_draws_leave_the_others_as_they_were() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(torch.device("cpu"), 1, 2):
        first = torch.rand(2)
    assert torch.equal(torch.rand(3), expected)
    with seeded(torch.device("cpu"), 1, 2):
        assert torch.equal(torch.rand(2), first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "sampling.temperature"),
        ({"temperature": -1.0}, "sampling.temperature: -1.0 is out of bounds"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"samples": 0}, "sampling.samples"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
