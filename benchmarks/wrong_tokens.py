"""Which regime the wrong tokens of DOPD's rollouts have, and which policy would have said the right one there.

    python benchmarks/wrong_tokens.py --references runs/real/smollm2/train.jsonl RUN/rollouts.jsonl ...

A rollout is laid beside the reference response of its record. Its tokens agree with it up to the first departure; where
the response is wrong, that token is called wrong, and what comes after it is judged no more. A right response may
depart as well, in other words. At a departure the reference's own next token is known, and so is whether it is the
likeliest of the privileged teacher and of the privileged copy.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopd_vl.common.files import read_jsonl
from dopd_vl.core import REGIMES

NAMES = [regime.name for regime in REGIMES]
POLICIES = {"teacher": "teacher/privileged", "copy": "student/privileged"}


@dataclass
class Tokens:
    """Counts of tokens of one regime, or of all."""

    agree: int = 0
    wrong: int = 0
    """first departures of wrong responses"""
    other: int = 0
    """first departures of right responses"""
    after: int = 0
    knows: Counter[str] = field(default_factory=Counter)
    """of the wrong tokens: policy -> how often the reference's token is its likeliest"""

    @property
    def total(self) -> int:
        return self.agree + self.wrong + self.other + self.after


def count(rollouts: Iterable[Mapping[str, Any]], references: Mapping[str, str]) -> dict[str, Tokens]:
    """Regime -> counts, and the sums under "all". Rollouts without a reference or a verdict are passed over."""
    found = {name: Tokens() for name in (*NAMES, "all")}
    for row in rollouts:
        reference = references.get(row["id"])
        if reference is None or row["correct"] is None or "regime" not in row:
            continue
        said, departed = "", False
        for place, (token, number) in enumerate(zip(row["tokens"], row["regime"], strict=True)):
            counts = [found[NAMES[number]], found["all"]] if number >= 0 else [found["all"]]
            rest = reference[len(said) :]
            agrees = not departed and (rest.startswith(token) or (not rest and place == len(row["tokens"]) - 1))
            if agrees:
                kind = "agree"
            elif departed:
                kind = "after"
            else:
                kind = "other" if row["correct"] else "wrong"
            for tokens in counts:
                setattr(tokens, kind, getattr(tokens, kind) + 1)
                if kind == "wrong":
                    for policy, source in POLICIES.items():
                        likeliest = row["alternatives"][source][place][0][0]
                        tokens.knows[policy] += bool(rest) and rest.startswith(likeliest)
            departed = departed or not agrees
            said += token
    return found


def table(found: Mapping[str, Tokens]) -> str:
    """A Markdown table, a row a regime: its share of each kind of token, how many of its own are wrong, and which
    policies' likeliest token is right there."""
    whole = found["all"]
    lines = [
        "| regime | of all tokens | of those that agree | of the wrong | wrong among its own | "
        "teacher knows | copy knows |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, tokens in found.items():
        shares = [_percent(getattr(tokens, k), getattr(whole, k)) for k in ("total", "agree", "wrong")]
        shares += [_percent(tokens.wrong, tokens.total)]
        shares += [_percent(tokens.knows[policy], tokens.wrong) for policy in POLICIES]
        lines.append(f"| {name} | {' | '.join(shares)} |")
    lines.append(f"\n{whole.total} tokens, {whole.wrong} of them wrong.")
    return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", nargs="+", type=Path, help="rollouts.jsonl of DOPD runs")
    parser.add_argument("--references", required=True, type=Path, metavar="FILE", help="records with a `response`")
    parser.add_argument("--steps", nargs=2, type=int, metavar=("FIRST", "LAST"), help="of these steps alone")
    args = parser.parse_args(argv)
    references = {record["id"]: record["response"] for record in read_jsonl(args.references)}
    first, last = args.steps or (0, float("inf"))
    rows = (row for file in args.rollouts for row in read_jsonl(file) if first <= row["step"] <= last)
    print(table(count(rows, references)))


if __name__ == "__main__":
    main()
