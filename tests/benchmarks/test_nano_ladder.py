"""Students of chosen strength, a tempted teacher, softened teachers: each from a small trial of the real code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.nano import __main__ as cli
from benchmarks.nano import ladder, shortcut
from benchmarks.nano.scoring import load
from benchmarks.nano.sft import Phase, Recipe, make_rows
from benchmarks.nano.soften import soften
from dopd_vl.common.errors import UserError
from dopd_vl.common.resources import model_folder

QUIET = Console(quiet=True)


def test_a_rung_is_saved_when_its_level_is_passed_and_the_climb_ends_at_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe((Phase(40, 64, {"none": 1.0}),), batch=4)
    monkeypatch.setitem(ladder.LADDERS, "text", replace(ladder.LADDERS["text"], recipe=recipe))
    monkeypatch.setattr(ladder, "WATCH_EVERY", 2)
    heights = iter([0.0, 0.12, 0.12, 0.15, 0.55, 0.55])  # a quick look, and a whole one where it is worth it
    looks = []

    def accuracy(model, views, examples, variant):
        looks.append(variant)
        return {"all": next(heights) if variant == "none" else 0.9}

    monkeypatch.setattr(ladder, "accuracy", accuracy)
    saved = ladder.build_ladder(tmp_path, "text", (0.1, 0.3, 0.5), console=QUIET)
    # 0.12 passes 0.1; 0.15 passes nothing; 0.55 passes 0.3 and 0.5 at once and is the higher of them.
    assert sorted(saved) == ["text-10", "text-50"]
    assert [saved[name]["step"] for name in ("text-10", "text-50")] == [4, 8]
    assert json.loads((tmp_path / "text-10" / "scores.json").read_text()) == saved["text-10"]
    first, last = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("text-10", "text-50"))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))


def test_a_ladder_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ladder", "--output", str(tmp_path), "--family", "words"]) == 2
    assert "'words' is unknown; known: text, text-even" in capsys.readouterr().err


def test_the_tempted_teacher_learns_from_responses_cut_down_to_their_answer() -> None:
    _, views = load(Path(model_folder("text-teacher")))
    rows = make_rows(Phase(1, 8, {"final_answer": 1.0}), "text", views, seed=0)
    for row in rows:
        view, ids = shortcut.cut_to_answer(row, views)
        whole, short = (views.tokenizer.decode(kept[:-1]) for kept in (row[1], ids))
        assert view is row[0]
        assert short.startswith("Answer: ")
        assert whole.endswith(short)
        assert len(short) < len(whole)
        assert ids[-1] == views.tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["text-student", "vision-student"])
def test_a_softened_teachers_logits_are_divided(name: str, nano_models: Path, tmp_path: Path) -> None:
    source = nano_models / name
    soften(str(source), 2.0, tmp_path / "soft")
    loader = AutoModelForCausalLM if name.startswith("text") else AutoModelForImageTextToText
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits, softened = (loader.from_pretrained(folder)(ids).logits for folder in (source, tmp_path / "soft"))
    assert torch.allclose(softened, logits / 2, atol=2e-2 * logits.abs().max().item())  # stored in half precision
    with pytest.raises(UserError, match="temperature 0"):
        soften(str(source), 0.0, tmp_path / "none")
    with pytest.raises(UserError, match="missing is no model"):
        soften(str(tmp_path / "missing"), 2.0, tmp_path / "none")
