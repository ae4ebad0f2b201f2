"""The routing of a rollout as a table."""

import math

import pytest

from dopd_vl.common.errors import UserError
from dopd_vl.reporting.rollout import describe, rollout_table

RECORD = {
    "step": 3,
    "id": "e7",
    "response": "3+5 `|` x",
    "correct": False,
    "answer": "9",
    "tokens": ["3", "|"],
    "logp/teacher/privileged": [math.log(0.9), math.log(0.25)],
    "logp/student/privileged": [math.log(0.6), math.log(0.5)],
    "gap": [math.log(1.5), math.log(2)],
    "regime": [0, 3],
    "weight": [0.6, 0.6],
}


def test_each_token_is_a_row_with_its_regime() -> None:
    rows = rollout_table(RECORD).splitlines()[2:]
    assert rows[0] == "| `3` | 0.900 | 0.600 | 0.41 | LH | teacher, reverse KL, Top-K | 0.6 |"
    assert rows[1] == r"| `\|` | 0.250 | 0.500 | 0.69 | HS | itself with p, reverse KL, Top-K | 0.6 |"


def test_model_output_cannot_break_out_of_its_code_span() -> None:
    assert r"`` 3+5 `\|` x ``" in describe(RECORD)


def test_a_rollout_without_routing_is_an_error() -> None:
    with pytest.raises(UserError, match="'e7' holds no regimes"):
        rollout_table({k: v for k, v in RECORD.items() if k != "regime"})
