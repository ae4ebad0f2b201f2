"""Models, supervised training and the build command."""

import json

import pytest
import torch
from rich.console import Console

from benchmarks.nano import __main__ as cli
from benchmarks.nano import build as building
from benchmarks.nano.build import RECIPES, build, shrunk
from benchmarks.nano.scoring import load
from benchmarks.nano.sft import MIXTURES, Phase, Recipe, make_rows, response_loss, schedule, train
from dopd_vl.nano.models import SHAPES, build_model
from dopd_vl.nano.tokenizer import corpus, nano_processor, train_tokenizer
from dopd_vl.views import processor_for
from privileged import VARIANTS


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus(150, seed=0))


def views_of(name, tokenizer):
    model = build_model(name, tokenizer, seed=0)
    return model, processor_for(model.config, nano_processor(tokenizer) if name.startswith("vision") else tokenizer)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tokenizer):
    first, again, other = (
        build_model("text-student", tokenizer, seed).get_input_embeddings().weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", SHAPES)
def test_every_model_has_the_vocabulary_of_the_tokenizer_and_the_size_it_should(name, tokenizer):
    model, _ = views_of(name, tokenizer)
    low, high = (600_000, 1_600_000) if "teacher" in name else (170_000, 420_000)
    assert low < model.num_parameters() < high
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)
    assert model.dtype == torch.float32


def test_mixtures_are_shares_of_known_variants_without_the_controls():
    for mixture in MIXTURES.values():
        assert sum(mixture.values()) == pytest.approx(1)
        assert set(mixture) <= set(VARIANTS) - {"wrong_hint", "degraded"}


@pytest.mark.parametrize("name", ["vision-student", "text-student"])
def test_the_loss_is_of_the_response_alone_and_does_not_depend_on_padding(name, tokenizer):
    model, views = views_of(name, tokenizer)
    rows = make_rows(Phase(1, 6, MIXTURES[SHAPES[name].family]), SHAPES[name].family, views, seed=0)
    together = response_loss(model, rows, views)
    assert together.item() == pytest.approx(sum(response_loss(model, [row], views).item() for row in rows), rel=1e-4)
    # By hand for one row: the log-probability of each response token given all before it.
    view, ids = rows[0]
    inputs = views.collate([view], [ids], tokenizer.pad_token_id)
    logp = model(**inputs).logits.log_softmax(-1)[0, -len(ids) - 1 : -1]
    by_hand = -logp[torch.arange(len(ids)), torch.tensor(ids)].sum()
    assert response_loss(model, rows[:1], views).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_training_learns_a_few_rows_and_is_reproducible(tokenizer):
    losses = []
    for _ in range(2):
        model, views = views_of("text-student", tokenizer)
        recipe = Recipe((Phase(15, 4, MIXTURES["text"]),), batch=4, learning_rate=1e-2, warmup=3)
        rows = [make_rows(recipe.phases[0], "text", views, seed=0)]
        steps = []
        train(model, views, recipe, rows, seed=0, on_step=lambda step, steps=steps: steps.append(step.loss))
        losses.append(steps)
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.5 * losses[0][0]


def test_the_learning_rate_rises_then_falls_to_zero():
    recipe = Recipe((Phase(100, 1, {"none": 1.0}),), warmup=10)
    assert schedule(5, recipe) == 0.5
    assert schedule(10, recipe) == 1
    assert schedule(55, recipe) == pytest.approx(0.5)
    assert schedule(100, recipe) == pytest.approx(0)


def test_build_makes_loadable_folders_with_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "CORPUS_RECORDS", 150)
    console = Console(file=open(tmp_path / "log", "w"), width=200)  # noqa: SIM115
    scores = build(tmp_path, family="text", shrink=400, scored=4, console=console)
    assert set(scores) == {"text-teacher", "text-student"}
    for name in scores:
        stated = json.loads((tmp_path / name / "scores.json").read_text())
        assert stated["command"] == "python -m benchmarks.nano build --output DIR --family text --seed 0 --shrink 400"
        assert set(stated["accuracy"]) == {"none", "hints"}
        assert set(stated["accuracy"]["none"]) == {"all", "steps", "story", "rules", "compare"}
        model, _ = load(tmp_path / name)
        assert model.dtype == torch.float32
    assert "text-student" in (tmp_path / "log").read_text()


def test_a_later_recipe_of_a_model_may_train_the_sight_that_an_earlier_one_froze(tmp_path):
    assert [recipe.frozen_sight for recipe in RECIPES["vision-student"]] == [True, True]
    scores = build(tmp_path, "vision", shrink=800, model="vision-student", scored=6, console=Console(quiet=True))
    assert len(scores["vision-student"]["recipe"]) == 2


def test_a_recipe_shrinks_to_no_less_than_one_step():
    small = shrunk(RECIPES["vision-teacher"][0], 10_000)
    assert [phase.steps for phase in small.phases] == [1] * len(small.phases)
    assert all(phase.rows == small.batch for phase in small.phases)


@pytest.mark.parametrize("argv", [[], ["build"], ["build", "--output", "x", "--fame", "audio"],
                                  ["build", "--output", "x", "--shrink", "0"]])  # fmt: skip
def test_a_wrong_argument_exits_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: python -m benchmarks.nano" in capsys.readouterr().err


def test_an_unknown_family_is_named(tmp_path):
    with pytest.raises(ValueError, match="family: 'audio' is unknown"):
        build(tmp_path, family="audio")
