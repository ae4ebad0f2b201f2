"""The audit: what is wrong with a record, how grave that is, and the counts of a whole dataset."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from dopd_vl.common.configuration import check_between, check_choice
from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.visible import visible
from privileged.audit.code_leaks import code_leak
from privileged.audit.contamination import EvaluationQuestions, file_digest, word_count
from privileged.audit.leaks import answer_leaks, executed_step, same_answer
from privileged.model_settings import ModelConfig, SamplingConfig
from privileged.records.fields import Finding
from privileged.records.records import Record, message_texts, user_text
from privileged.rendering.boxes import is_empty

Severity = Literal["reject", "warn", "ignore"]

FINDINGS: dict[str, tuple[Severity, str]] = {
    "duplicate_record": ("reject", "the same prompt, pixels and answer as an earlier record"),
    "answer_conflict": ("reject", "the prompt and pixels of an earlier record, with another answer"),
    "near_duplicate": ("warn", "nearly the words of an earlier record's prompt, with the same numbers and pixels"),
    "evaluation_overlap": ("reject", "the prompt shares words with a question of audit.decontaminate"),
    "marker_unknown": (
        "reject",
        "the prompt holds another mark than <image>, such as [IMG] or <video>, as text",
    ),
    "markers_numbered": ("warn", "numbered marks such as <image 2> became <image>, with the images in their order"),
    "hints_from_json": ("warn", "hints that were JSON text were read as the list that they are"),
    "column_unread": ("warn", "a column that is not read nearly has the name of one that is, which the record lacks"),
    "image_turned": ("warn", "an image was turned as its EXIF data says"),
    "image_transparent": ("warn", "transparent pixels were laid on white, or on black where all would be white"),
    "image_scaled": ("warn", "an image of more than 8 bits a channel was brought to 8"),
    "file_skipped": ("warn", "a file of the source is in a sub-folder, or has a suffix that is not read"),
    "image_without_objects": ("warn", "nothing is annotated in a picture of the source, and so nothing is asked of it"),
    "annotation_without_image": ("warn", "a file of annotations of the source has no picture of its name"),
    "box_turned": ("warn", "a turned box of the source is read as the upright box around it"),
    "categories_merged": ("warn", "several categories of the source have one name, and are one"),
    "crowd_left_out": ("warn", "a category of a picture is left out, since a crowd of it was not counted"),
    "box_empty": ("reject", "a box has no area, or lies outside its image (when kept, the box is dropped)"),
    "box_out_of_range": ("warn", "a box sticks out of its image by more than a pixel (it is clipped)"),
    "box_whole_image": ("warn", "a box covers nearly all of its image, and so points at nothing"),
    "box_duplicated": ("warn", "two boxes of a record have the same label and nearly the same place"),
    "box_unlabelled": ("warn", "a box has no label: variants with labels cannot be rendered"),
    "label_language": ("warn", "a box label is in a script that neither question nor answer uses"),
    "answer_in_hint": ("reject", "an unexecuted hint gives the answer away"),
    "code_in_hint": (
        "reject",
        "an unexecuted hint for a coding task holds the program or an output that its tests expect",
    ),
    "answer_in_hint_summary": ("warn", "the summarised hint gives the answer away"),
    "answer_in_wrong_hint": ("warn", "the wrong hint states the right answer"),
    "executed_step_in_hint": ("warn", "an unexecuted hint holds a worked-out step"),
    "answer_given_away": ("reject", "audit.model says that hints, caption or boxes give the answer away"),
    "not_judged": ("warn", "audit.model could not judge the record"),
    "hint_too_long": ("warn", "a hint has more words than audit.max_hint_words"),
    "final_answer_differs": ("warn", "privileged.final_answer is not the answer"),
    "no_privilege": ("warn", "no privileged information beyond the final answer"),
}
"""Every finding: what it leads to by default (the record is set aside, kept and counted, or not looked at), and what it
means. What is said of a source is counted when it is opened, by the names of files or entries; "reject" refuses it."""

SEVERITIES = {code: severity for code, (severity, _) in FINDINGS.items()}
DESCRIPTIONS = {code: meaning for code, (_, meaning) in FINDINGS.items()}

ADDED_FINDINGS = ("column_unread", "box_turned")
"""Left as they are by default, these are in no fingerprint, so that what was begun before them is taken up."""

WHOLE_IMAGE_SHARE = 0.98
SAME_BOX = 0.95
EXAMPLES_KEPT = 5
_ONE_SCRIPT = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"), "EAST ASIAN")


@dataclass
class JudgeConfig(ModelConfig):
    """The model that judges how much the privileged part of a record gives the answer away.

    Args:
        sampling: How it replies to a question; `extra` holds also for log-probabilities.
        cache: The folder that keeps every reply. By default it is the output's name with ".judged" at its end.
        ask: With "log_probability" the illusion score is measured (by a local model, or an endpoint that gives
            prompt_logprobs, as vLLM does); with "question" the model is asked whether the answer is given away, which
            gives no score.
    """

    KEY: ClassVar[str] = "audit.model"
    CACHE_ENDING: ClassVar[str] = ".judged"

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_tokens=256))
    ask: str = "log_probability"

    def check(self) -> None:
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        super().check()
        check_choice(self.ask, ("log_probability", "question"), "audit.model.ask")


@dataclass
class AuditConfig:
    """What the audit does with what it finds.

    Args:
        severity: What follows from a finding, by its name: "reject" sets the record aside, "warn" keeps and counts it,
            "ignore" does not look for it. What is not named keeps its default (docs/audit.md).
        max_hint_words: A hint of more words is found to be too long.
        near_duplicate: An earlier record that shares so much of a prompt's word triples is a near-duplicate.
        decontaminate: A file of evaluation questions (.jsonl, .parquet, or text with one a line) that no prompt may
            overlap. By default there is none.
        decontaminate_ngram: So many shared words in a row make an overlap.
        model: A model that measures how much hints, caption and boxes give the answer away. By default none does.
        max_illusion_score: A record with more of that measure, in nats, is found to give its answer away. By default it
            is only measured.
    """

    severity: dict[str, str] = field(default_factory=dict)
    max_hint_words: int = 200
    near_duplicate: float = 0.9
    decontaminate: str | None = None
    decontaminate_ngram: int = 13
    model: JudgeConfig | None = None
    max_illusion_score: float | None = None

    def check(self) -> None:
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        self.resolved()
        check_between(self.max_hint_words, 1, math.inf, "audit.max_hint_words")
        check_between(self.decontaminate_ngram, 1, math.inf, "audit.decontaminate_ngram")
        check_between(self.near_duplicate, 0.5, 1, "audit.near_duplicate")
        if self.decontaminate is not None:
            file_digest(self.decontaminate)
        check_between(self.max_illusion_score, 0, math.inf, "audit.max_illusion_score")
        if self.model is not None:
            self.model.check()
        if self.max_illusion_score is not None and (self.model is None or self.model.ask != "log_probability"):
            raise ConfigurationError("audit.max_illusion_score: needs audit.model, with ask: log_probability")

    def fingerprint(self) -> dict[str, object]:
        """All that decides what becomes of a record, but for the model, which `judge_fingerprint` knows; of the
        evaluation questions their content, not their path."""
        questions = None if self.decontaminate is None else file_digest(self.decontaminate)
        settings = {**asdict(self), "severity": self.resolved(), "decontaminate": questions}
        del settings["model"]
        for code in ADDED_FINDINGS:
            if settings["severity"][code] == SEVERITIES[code]:
                del settings["severity"][code]
        if self.model is None:  # what was begun before there was a judge is taken up
            del settings["max_illusion_score"]
            for code in ("answer_given_away", "not_judged"):
                del settings["severity"][code]
        return settings

    def resolved(self) -> dict[str, Severity]:
        """The severity of every finding; ConfigurationError for an unknown name or value."""
        table = dict(SEVERITIES)
        for code, severity in self.severity.items():
            check_choice(code, SEVERITIES, "audit.severity: the finding")
            check_choice(severity, get_args(Severity), f"audit.severity.{code}")
            table[code] = severity  # type: ignore[assignment]
        return table


def check_record(
    record: Record, config: AuditConfig | None = None, questions: EvaluationQuestions | None = None
) -> list[Finding]:
    """Everything noticed about one record, what parsing noticed included. Duplicates are for `prepare` to see.

    Args:
        questions: The evaluation questions of `config.decontaminate`, if it names any.
    """
    config = config or AuditConfig()
    findings = [*record.findings, *_check_boxes(record), *_check_labels(record), *_check_text(record)]
    findings += _check_lengths(record, config.max_hint_words)
    if questions is not None and (shared := questions.overlap(user_text(record.prompt))):
        findings.append(Finding("evaluation_overlap", f"an evaluation question holds {shared!r} too"))
    return findings


def judge(findings: Iterable[Finding], severity: Mapping[str, Severity]) -> tuple[str | None, list[Finding]]:
    """The reason to set a record aside (None to keep it), and the findings to count."""
    counted = [finding for finding in findings if severity[finding.code] != "ignore"]
    reasons = [f"{finding.code}: {finding.detail}" for finding in counted if severity[finding.code] == "reject"]
    return ("; ".join(reasons) or None), counted


def _check_boxes(record: Record) -> Iterable[Finding]:
    seen: dict[tuple[Any, ...], list[int]] = {}
    boxes = record.privileged["boxes"]
    for number, box in enumerate(boxes):
        assert not is_empty(box["bbox"]), "parsing drops empty boxes"
        width, height = record.images[box["image"]].size
        x1, y1, x2, y2 = box["bbox"]
        if (x2 - x1) * (y2 - y1) >= WHOLE_IMAGE_SHARE * width * height:
            yield Finding("box_whole_image", f"box {number} covers all of its {width} x {height} image")
        if not box["label"]:
            yield Finding("box_unlabelled", f"box {number} has no label")
        earlier = seen.setdefault((box["image"], box["label"]), [])
        same = next((other for other in earlier if overlap(box["bbox"], boxes[other]["bbox"]) >= SAME_BOX), None)
        if same is not None:
            yield Finding("box_duplicated", f"box {number} repeats box {same} ({box['label']!r})")
        else:
            earlier.append(number)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2].

    >>> overlap([0, 0, 10, 10], [0, 0, 10, 5])
    0.5
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other))
    return width * height / (sum(areas) - width * height)


def _check_labels(record: Record) -> Iterable[Finding]:
    question = user_text(record.prompt)
    for number, box in enumerate(record.privileged["boxes"]):
        if other_script(box["label"], question, record.answer):
            yield Finding("label_language", f"box {number} is labelled {box['label']!r}")


def _check_lengths(record: Record, limit: int) -> Iterable[Finding]:
    privileged = record.privileged
    for hint in (*privileged["hints"], privileged["hint_summary"], privileged["wrong_hint"]):
        if hint and (count := word_count(hint)) > limit:
            yield Finding("hint_too_long", f"a hint has {count} words, more than {limit}")


def _check_text(record: Record) -> Iterable[Finding]:
    privileged, prompt = record.privileged, message_texts(record.prompt)
    # The answer of a coding task is its tests, which no hint quotes whole: what leaks there is a program or an output.
    is_code = record.task == "code"
    if is_code and (hint := code_leak(privileged["hints"], record.answer, prompt)):
        yield Finding("code_in_hint", f"the hint {hint!r} holds a program or an expected output")
    if not is_code and (hint := answer_leaks(record.answer, privileged["hints"], prompt)):
        yield Finding("answer_in_hint", f"the answer {record.answer!r} is in the hint {hint!r}")
    if hint := executed_step(privileged["hints"], prompt):
        yield Finding("executed_step_in_hint", f"the hint {hint!r} holds a worked-out step")
    summary = privileged["hint_summary"]
    if summary and answer_leaks(record.answer, [summary], prompt):
        yield Finding("answer_in_hint_summary", f"the answer {record.answer!r} is in the summary {summary!r}")
    wrong = privileged["wrong_hint"]
    if wrong and answer_leaks(record.answer, [wrong], prompt):
        yield Finding("answer_in_wrong_hint", f"the wrong hint {wrong!r} states the right answer")
    final = privileged["final_answer"]
    if final is not None and not same_answer(final, record.answer):
        yield Finding("final_answer_differs", f"final_answer is {final!r}, the answer {record.answer!r}")
    if not any(privileged[key] for key in ("hints", "hints_executed", "hint_summary", "caption", "boxes")):
        yield Finding("no_privilege", "it has neither hints, caption nor boxes")


def scripts_of(text: str) -> set[str]:
    """The scripts of a text's letters, Chinese and Japanese as one.

    >>> sorted(scripts_of("OK, 東京タワー 7"))
    ['EAST ASIAN', 'LATIN']
    """
    names = (unicodedata.name(char, "").partition(" ")[0] for char in text[:2000] if char.isalpha())
    return {_ONE_SCRIPT.get(name, name) for name in names if name}


def other_script(label: str, question: str, answer: str) -> bool:
    """Whether a label is written in a script that neither the question nor the answer uses.

    Latin labels of other questions count only when they are words: a name, a sign or a unit (STOP, km) is Latin in
    many languages. What the letters do not show is not seen: a German label for an English question.

    >>> other_script("猫", "Where is the cat?", "left"), other_script("cat", "猫はどこ?", "左")
    (True, True)
    >>> other_script("STOP", "标志上写着什么?", "停"), other_script("出口", "What does the sign say?", "出口")
    (False, False)
    """
    found, known = scripts_of(label), scripts_of(question) | scripts_of(answer)
    if not found or not known or found & known:
        return False
    return found != {"LATIN"} or (label.islower() and sum(char.isalpha() for char in label) > 2)


@dataclass
class Tally:
    """Counts over records, of fixed size however many there are. Tallies of parts add up to that of the whole."""

    numbers: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    annotated: Counter[str] = field(default_factory=Counter)
    illusion: Counter[str] = field(default_factory=Counter)
    """Records by their illusion score, in nats rounded down."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        return self.numbers["records"]

    @property
    def rejected(self) -> int:
        return self.numbers["rejected"]

    def keep(self, row: Mapping[str, Any], variants: Iterable[str]) -> None:
        self.numbers.update(records=1, images=len(row["images"]), boxes=len(row["privileged"]["boxes"]))
        self.tasks[row["task"]] += 1
        self.sources[visible(row["source"])] += 1
        self.variants.update(variants)

    def note(self, name: str, codes: Iterable[str]) -> None:
        """Count findings, each once for what is named: a record by its id, or a file or an entry of a source."""
        for code in set(codes):
            self.findings[code] += 1
            examples = self.examples.setdefault(code, [])
            if len(examples) < EXAMPLES_KEPT:
                examples.append(visible(name))

    def judged(self, illusion_score: float | None) -> None:
        if illusion_score is not None:
            self.illusion[str(math.floor(illusion_score))] += 1

    def reject(self, stage: str) -> None:
        self.numbers["rejected"] += 1
        self.stages[stage] += 1

    def add(self, other: Mapping[str, Any]) -> None:
        """Add a part, as `to_dict` gave it."""
        for name, counter in self._counters().items():
            counter.update(other.get(name, {}))
        for code, ids in other["examples"].items():
            kept = self.examples.setdefault(code, [])
            kept.extend(ids[: EXAMPLES_KEPT - len(kept)])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in an order that depends on nothing but the counts."""
        counts = {name: dict(sorted(counter.items())) for name, counter in self._counters().items()}
        return {**counts, "examples": {code: list(ids) for code, ids in sorted(self.examples.items())}}

    def _counters(self) -> dict[str, Counter[str]]:
        return {name: counter for name, counter in vars(self).items() if isinstance(counter, Counter)}
