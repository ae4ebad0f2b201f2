"""BIG-bench's elementary maths questions with the hints that come with them, as records to prepare.

    python examples/real_data/bigbench.py && dopd-vl prepare --config configs/prepare/bigbench.yaml

The task's files carry a canary: they are fetched at run time, and stay out of the repository and of any data set that
is published. Every question is there twice, once with a hint in words and once with one as a program of operations.
"""

import json
import re
from pathlib import Path

from packages import from_pypi, members

OUTPUT = Path("runs/real/bigbench/records.jsonl")
TASK = "bigbench/benchmark_tasks/elementary_math_qa/question_with_"
STEP_END = re.compile(r"[,.]\s+|[,.]$")


def steps(hint: str) -> list[str]:
    """The steps of a hint in words.

    >>> steps("divide 2 by 3.5, subtract result from 1. divide 90 by the result.")
    ['Divide 2 by 3.5.', 'Subtract result from 1.', 'Divide 90 by the result.']
    """
    parts = [part.strip() for part in STEP_END.split(hint)]
    return [f"{part[0].upper()}{part[1:]}." for part in parts if part]


def records() -> list[dict]:
    files = members(from_pypi("bigbench==1.0.0"), TASK)
    tasks = {name.split("/")[-2]: json.loads(data)["examples"] for name, data in files.items()}
    rows = []
    worded, formal = tasks["question_with_language_hint"], tasks["question_with_mathematical_hint"]
    for number, (one, other) in enumerate(zip(worded, formal, strict=True)):
        question, _, hint = one["input"].rpartition("\n")
        assert other["input"].startswith(question), f"example {number}: the two files are not in one order"
        options = {chr(ord("A") + place): text for place, text in enumerate(one["target_scores"])}
        (answer,) = (letter for letter, text in options.items() if one["target_scores"][text] == 1)
        listed = "\n".join(f"({letter}) {text}" for letter, text in options.items())
        rows.append(
            {
                "id": f"elementary-math-qa-{number}",
                "prompt": f"{question}\n{listed}\nAnswer with the letter of one option.",
                "answer": answer,
                "task": "choice",
                "privileged": {"hints": steps(hint), "hint_summary": other["input"][len(question) :].strip()},
            }
        )
    return rows


if __name__ == "__main__":
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with OUTPUT.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in records())
    print(OUTPUT)
