"""Records that repeat or contradict an earlier one: by id, prompt and pixels, or nearly by the words of the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from privileged.audit.audit import Severity, judge
from privileged.audit.leaks import same_answer
from privileged.prepare.journal import Seen
from privileged.prepare.outcomes import Outcome
from privileged.records.fields import Finding

MAX_ANSWER = 500
"""Characters of an answer that are kept to compare others with."""


class Duplicates:
    """Compares each kept record with all that were kept before, in the order of the records, on disk.

    Args:
        threshold: Share of a prompt's shingles, from which on it is a near-duplicate.
    """

    def __init__(self, seen: Seen, severity: Mapping[str, Severity], threshold: float):
        self._seen, self._severity, self._threshold = seen, severity, threshold

    def judge(self, outcome: Outcome, shard: int) -> None:
        """Set a record aside as a duplicate, or count what is found; remember it if it stays."""
        if outcome.row is None:
            return
        id_key = b"id:" + hashlib.blake2b(outcome.id.encode(), digest_size=16).digest()
        content_key = b"content:" + outcome.digest
        if self._seen.find(id_key) is not None:
            outcome.set_aside("duplicate", f"the id {outcome.id!r} was used by an earlier record")
            return
        answer_key, answer = b"answer:" + outcome.digest, _short(outcome.row["answer"])
        if (earlier := self._seen.find(content_key)) is not None:
            if same_answer(answer, self._seen.find(answer_key) or answer):
                self._found(outcome, Finding("duplicate_record", f"same prompt and images as {earlier!r}"))
            else:
                self._found(outcome, Finding("answer_conflict", f"{earlier!r} has this prompt and another answer"))
        if outcome.row is None:
            return
        near = self._seen.signatures.find(outcome.near_keys, outcome.signature, self._threshold)
        if near is not None:
            self._found(outcome, Finding("near_duplicate", f"nearly the prompt of {near!r}"))
        if outcome.row is None:
            return
        self._seen.signatures.add(outcome.near_keys, outcome.signature, outcome.id, shard)
        self._seen.add(id_key, outcome.id, shard)
        self._seen.add(content_key, outcome.id, shard)
        self._seen.add(answer_key, answer, shard)

    def _found(self, outcome: Outcome, finding: Finding) -> None:
        reason, counted = judge([finding], self._severity)
        outcome.findings += counted
        if reason is not None:
            outcome.set_aside("duplicate", reason)


def _short(answer: str) -> str:
    """The answer, or of a long one (a program's tests) a digest."""
    return answer if len(answer) <= MAX_ANSWER else f"digest {hashlib.blake2b(answer.encode()).hexdigest()}"
