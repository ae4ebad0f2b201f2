"""One rollout as a Markdown table: who judged each token how, and what it was taught.

python -m dopd_vl.reporting.rollout runs/quickstart/dopd --step 1 --index 0
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import iterate_rows
from dopd_vl.common.run_layout import ROLLOUTS_FILE
from dopd_vl.common.visible import print_line
from dopd_vl.core import Regime
from dopd_vl.objectives.dopd import PUBLISHED, published_lessons
from dopd_vl.run_folder.kept_files import check_unchanged

_WORDS = {
    "student": "itself with p",
    "reverse_kl": "reverse KL",
    "js": "JS",
    "top_k": "Top-K",
    "full": "full vocabulary",
}
_TEACHER, _STUDENT = "logp/teacher/privileged", "logp/student/privileged"


def rollout_table(record: Mapping[str, Any]) -> str:
    """A Markdown table of a row of `rollouts.jsonl` that DOPD routed.

    Raises:
        UserError: the rollout was not routed (its objective is another).
    """
    if "regime" not in record:
        raise UserError(f"rollout {record['id']!r} holds no regimes: only dopd routes its tokens")
    taught_by = {
        regime: ", ".join(_WORDS.get(word, word) for word in (lesson.source, lesson.divergence, lesson.support))
        for regime, lesson in published_lessons(PUBLISHED).items()
    }
    columns = ("tokens", _TEACHER, _STUDENT, "gap", "regime", "weight")
    rows = [
        "| token | q_T | q_S | gap (nats) | regime | taught by | weight |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for token, teacher, student, gap, regime, weight in zip(*(record[c] for c in columns), strict=True):
        cells = (
            _code(token),
            f"{math.exp(teacher):.3f}",
            f"{math.exp(student):.3f}",
            f"{gap:.2f}",
            Regime(regime).name,
            taught_by[regime],
            f"{weight:.1f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def describe(record: Mapping[str, Any]) -> str:
    """The table with a line above it that says which rollout it is."""
    verdict = {True: "right", False: "wrong", None: "not scored"}[record.get("correct")]
    head = f"Step {record['step']}, example `{record['id']}`: {_code(record['response'])} ({verdict}; the answer is "
    return f"{head}{_code(str(record['answer']))})\n\n{rollout_table(record)}"


def _code(text: str) -> str:
    """Inline code that no model output can break out of."""
    shown = repr(text)[1:-1].replace("|", "\\|")
    if not shown.strip():
        return f"`{'␣' * len(shown)}`" if shown else "(nothing)"
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One rollout of a run as a Markdown table.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--step", type=int, default=None, help="default: the last logged step")
    parser.add_argument("--index", type=int, default=0, help="which of the step's kept rollouts")
    arguments = parser.parse_args(argv)
    check_unchanged(arguments.run, [ROLLOUTS_FILE])
    step: int | None = arguments.step
    chosen: list[dict[str, Any]] = []
    for _, record in iterate_rows(arguments.run / ROLLOUTS_FILE):
        if arguments.step is None and record["step"] != step:
            step, chosen = record["step"], []
        if record["step"] == step:
            chosen.append(record)
    if step is None:
        raise UserError(f"{arguments.run} holds no rollouts")
    if not 0 <= arguments.index < len(chosen):
        raise UserError(f"{arguments.run}: step {step} has {len(chosen)} kept rollouts, there is no {arguments.index}")
    print_line(describe(chosen[arguments.index]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
