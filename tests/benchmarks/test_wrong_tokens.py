"""Where a rollout leaves its reference, and the regime of the token that does."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.wrong_tokens import count, main
from dopd_vl.core import Regime

LH, LL, HT, HS = (int(regime) for regime in (Regime.LH, Regime.LL, Regime.HT, Regime.HS))


def rollout(tokens: list[str], regimes: list[int], correct: bool | None, teacher: str, copy: str) -> dict[str, Any]:
    likeliest = {"teacher/privileged": teacher, "student/privileged": copy}
    alternatives = {source: [[[token, 0.9]] for _ in tokens] for source, token in likeliest.items()}
    return {
        "step": 1,
        "id": "a",
        "tokens": tokens,
        "regime": regimes,
        "correct": correct,
        "alternatives": alternatives,
    }


def test_the_first_departure_of_a_wrong_response_is_its_wrong_token() -> None:
    references = {"a": "1 + 2 = 3"}
    rows = [
        rollout(["1", " +", " 2", " =", " 3", "<end>"], [LH, LH, LL, LH, LH, LH], True, "1", "1"),
        rollout(["1", " +", " 2", " =", " 4", "<end>"], [LH, LH, LH, LH, HS, HT], False, " 3", " 4"),
        rollout(["2", " +", " 1", " =", " 3", "<end>"], [HT, LH, LH, LH, LH, -1], True, "1", "1"),
        rollout(["1", "<end>"], [LH, HS], False, " +", " +"),
        rollout(["9"], [HS], None, "1", "1"),
        rollout(["9"], [HS], False, "1", "1") | {"id": "unknown"},
    ]
    found = count(rows, references)
    whole = found["all"]
    assert (whole.agree, whole.wrong, whole.other, whole.after) == (11, 2, 1, 6)
    assert whole.total == 20
    assert found["HS"].wrong == 2
    assert found["HS"].knows == {"teacher": 2, "copy": 1}
    assert (found["HT"].other, found["HT"].after, found["LL"].agree) == (1, 1, 1)


def test_shares_are_printed_for_the_steps_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, references = tmp_path / "rollouts.jsonl", tmp_path / "references.jsonl"
    wrong = rollout(["1", " +", " 3"], [LH, LH, HS], False, " 2", " 3")
    file.write_text("".join(json.dumps(row) + "\n" for row in (wrong, {**wrong, "step": 2})))
    references.write_text(json.dumps({"id": "a", "response": "1 + 2 = 3"}) + "\n")
    main([str(file), "--references", str(references), "--steps", "2", "9"])
    out = capsys.readouterr().out
    assert "| HS | 33.3 | 0.0 | 100.0 | 100.0 | 100.0 | 0.0 |" in out
    assert "3 tokens, 1 of them wrong." in out
