"""How well the audit finds planted leaks: precision and recall by kind, over tests/privileged/planted_leaks/*.yaml.

    python benchmarks/leaks.py            # print the table, and every miss and false alarm of the open cases
    python benchmarks/leaks.py --write    # put it into docs/audit.md
    python benchmarks/leaks.py --held-out # list those of the held-out third too

Each case is one hint for one prompt and answer, sent through the audit of a whole record. A third of the cases, drawn
by a hash of their text, is held out: the rules were written without looking at what became of them.
"""

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from privileged.audit.audit import check_record
from privileged.records.records import parse_record
from privileged.schema import TASKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "audit.md"
SUITE = ROOT / "tests" / "privileged" / "planted_leaks"
BEGIN, END = "<!-- planted leaks: begin -->", "<!-- planted leaks: end -->"
EXPECTED = {"executed step": {"executed_step_in_hint"}}
DEFAULT = {"answer_in_hint", "code_in_hint"}


@dataclass(frozen=True)
class Case:
    """One hint, and whether it gives away what it must not."""

    kind: str
    task: str
    prompt: str
    answer: str
    hint: str
    leaks: bool

    @property
    def held_out(self) -> bool:
        return hashlib.sha256((self.answer + self.hint).encode()).digest()[0] % 3 == 0

    def found(self) -> bool:
        raw = {"prompt": self.prompt, "answer": self.answer, "task": self.task, "privileged": {"hints": [self.hint]}}
        record = parse_record(raw, tasks={*TASKS, "code"})
        wanted = EXPECTED.get(self.kind, DEFAULT)
        return any(finding.code in wanted for finding in check_record(record))


def cases() -> list[Case]:
    suite = []
    for path in sorted(SUITE.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8")):
            answer = group.get("answer", "a word that no hint holds")
            for hint in (*group["leaks"], *group["fine"]):
                leaks = hint in group["leaks"]
                suite.append(Case(group["kind"], group.get("task", "exact"), group["prompt"], answer, hint, leaks))
    return suite


def scores(suite: Iterable[Case]) -> tuple[int, int, int, int]:
    """Leaks, leaks found, good hints, false alarms."""
    judged = [(case.leaks, case.found()) for case in suite]
    leaks = [found for leaks, found in judged if leaks]
    good = [found for leaks, found in judged if not leaks]
    return len(leaks), sum(leaks), len(good), sum(good)


def table() -> str:
    suite = cases()
    lines = [
        "| kind | leaks | found | recall | good hints | false alarms | precision |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {kind: [case for case in suite if case.kind == kind] for kind in dict.fromkeys(case.kind for case in suite)}
    rows["**all**"] = suite
    rows["open two thirds"] = [case for case in suite if not case.held_out]
    rows["held-out third"] = [case for case in suite if case.held_out]
    for name, part in rows.items():
        planted, found, good, alarms = scores(part)
        precision = f"{found / (found + alarms):.3f}" if found + alarms else "-"
        lines.append(f"| {name} | {planted} | {found} | {found / planted:.3f} | {good} | {alarms} | {precision} |")
    return "\n".join(lines)


def write_between(page: Path, begin: str, end: str, shown: str) -> None:
    """Put a table between two marks of a page, in place of the one that stands there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{shown}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--held-out", action="store_true")
    args = parser.parse_args()
    shown = table()
    print(shown)
    for case in cases():
        if (args.held_out or not case.held_out) and case.found() != case.leaks:
            print("missed" if case.leaks else "false alarm", repr((case.kind, case.answer, case.hint)))
    if args.write:
        write_between(PAGE, BEGIN, END, shown)


if __name__ == "__main__":
    main()
