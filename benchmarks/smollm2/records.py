"""Records of the pretrained world: two sources to learn from, and a third that nothing is trained on.

- BIG-bench's `elementary_math_qa`, with the hints in words that its authors wrote, and these executed. Asked without
  options, so that none is answered by chance; kept are questions whose program of at most two operations comes exactly
  to the right option's number.
- reasoning-gym's `number_sequence`: the hint is the rule, step by step and not executed.
- BIG-bench's `arithmetic` of one digit, "What is 3 times 4?": never trained on, and without hints.

Each record carries a reference response, which preparation leaves out.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.smollm2.sums import Unworkable, equation, executed, shown, work_out
from dopd_vl.common.errors import UserError

Record = dict[str, Any]
MOST_STEPS = 2
LONGEST_QUESTION = 200  # characters, about 55 tokens
LARGEST_TERM = 200
EVERY_LONG = 3
"""Of the sequences with rules of two steps, which a small model hardly finds, so many are looked at for one kept."""
NEEDS_OPTIONS = re.compile(r"which|following|option|none of|approximate|closest|ratio", re.IGNORECASE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def math_question(row: Mapping[str, Any]) -> Record | None:
    """A record of `examples/real_data/bigbench.py` as an open question with worked steps; None where it has none."""
    *asked, _ = row["prompt"].split("\n")
    question = asked[0]
    options = {line[1]: line[4:] for line in asked[1:] if re.match(r"\([A-Z]\) ", line)}
    numbers = NUMBER.findall(options.get(row["answer"], ""))
    steps = row["privileged"]["hints"]
    if len(numbers) != 1 or len(question) > LONGEST_QUESTION or NEEDS_OPTIONS.search(question):
        return None
    try:
        equations, value = work_out(row["privileged"]["hint_summary"], MOST_STEPS)
        if shown(value) != shown(float(numbers[0])) or len(steps) != len(equations):
            return None
    except Unworkable:
        return None
    return _worked(row["id"], question, shown(value), steps, equations)


def sequence_question(entry: Mapping[str, Any]) -> Record | None:
    """An entry of `number_sequence` with its rule as hints; None where the rule has no short working.

    >>> sequence_question({"question": "3, 7, 11, 15, ?", "answer": "19",
    ...     "metadata": {"source_index": 0, "rule": "add 4", "sequence": [3, 7, 11, 15, 19]}})["response"]
    'Add 4: 15 + 4 = 19. Answer: 19'
    """
    terms = entry["metadata"]["sequence"][:-1]
    value, steps, equations = terms[-1], [], []
    try:
        for part in entry["metadata"]["rule"].split(" then "):
            step, sign, operand = _operation(part, value, terms)
            done, value = equation(value, sign, operand)
            steps.append(step)
            equations.append(done)
    except Unworkable:
        return None
    if shown(value) != entry["answer"] or max(map(abs, terms)) > LARGEST_TERM or len(steps) > MOST_STEPS:
        return None
    number = entry["metadata"]["source_index"]
    if len(steps) > 1 and number % EVERY_LONG:
        return None
    return _worked(
        f"number-sequence-{number}", f"What comes next? {entry['question']}", entry["answer"], steps, equations
    )


def _worked(name: str, question: str, answer: str, steps: list[str], equations: list[str]) -> Record:
    worked = executed(steps, equations)
    return {
        "id": name,
        "prompt": question,
        "answer": answer,
        "task": "number",
        "privileged": {"hints": steps, "hints_executed": worked},
        "response": " ".join([*worked, f"Answer: {answer}"]),
    }


def arithmetic_question(number: int, example: Mapping[str, Any]) -> Record:
    """An example of BIG-bench's `arithmetic`, without hints; its distractors are left out."""
    return {
        "id": f"arithmetic-{number}",
        "prompt": example["input"],
        "answer": example["target"],
        "task": "number",
        "privileged": {},
    }


def distinct(records: Iterable[Record | None]) -> list[Record]:
    """The records that there are, each prompt once, without those whose hints say the answer's number."""
    found: dict[str, Record] = {}
    for record in records:
        if record and record["answer"] not in NUMBER.findall(" ".join(record["privileged"].get("hints", []))):
            found.setdefault(record["prompt"], record)
    return list(found.values())


def pattern(record: Record) -> str:
    """A question without its numbers: questions of one pattern are one exercise with other numbers."""
    return NUMBER.sub("#", record["prompt"])


def beginning(record: Record) -> str:
    """A sequence's first term and rule: those with the same are one sequence, of which more or less is shown."""
    return " ".join([NUMBER.findall(record["prompt"])[0], *record["privileged"]["hints"]])


def divide(
    records: Sequence[Record], sizes: Mapping[str, int], seed: int, alike: Callable[[Record], str]
) -> dict[str, list[Record]]:
    """Disjoint splits of the given sizes, in that order; what is left goes to none.

    Args:
        alike: records with the same value are never in two splits.

    Raises:
        UserError: there are too few records.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(alike(record), []).append(record)
    rng = random.Random(seed)
    waiting = list(groups.values())
    rng.shuffle(waiting)
    splits: dict[str, list[Record]] = {}
    for name, size in sizes.items():
        split = splits[name] = []
        while len(split) < size:
            if not waiting:
                raise UserError(f"{name}: only {len(split)} of {size} records are left for it")
            split += waiting.pop()
        del split[size:]  # the rest of a group that was begun goes to no split
        rng.shuffle(split)
    return splits


def _operation(part: str, value: float, terms: Sequence[int]) -> tuple[str, str, float]:
    """(step in words, sign, operand) of one part of a rule."""
    word, _, rest = part.partition(" ")
    number = NUMBER.search(rest)
    match word:
        case "add" if rest == "previous":
            return "Add the number before it.", "+", terms[-2]
        case "add" if number:
            amount = int(number[0])
            return (f"Add {amount}.", "+", amount) if amount > 0 else (f"Subtract {-amount}.", "-", -amount)
        case "multiply" if number:
            return f"Multiply by {number[0]}.", "*", int(number[0])
        case "double":
            return "Double it.", "*", 2
        case "halve" if value % 2 == 0:
            return "Halve it.", "/", 2
        case "square":
            return "Square it.", "*", value
    raise Unworkable(f"rule {part!r}")
