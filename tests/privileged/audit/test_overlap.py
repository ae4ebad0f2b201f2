"""Near-duplicates, evaluation questions, labels and long hints."""

import doctest
import io
import json
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from privileged_samples import raw_record
from rich.console import Console

from dopd_vl.common.errors import ConfigurationError
from privileged.audit import contamination
from privileged.audit.audit import AuditConfig, check_record
from privileged.audit.code_leaks import code_leak
from privileged.audit.contamination import EvaluationQuestions
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.near import Signatures, near_keys, signature, similarity
from privileged.prepare.prepare import prepare
from privileged.records.records import parse_record
from tests.commands import dopd_vl

LONG = (
    "A farmer keeps 12 hens and 30 sheep on a hill by the river. Every morning he counts all the legs that he can see "
    "from the gate of the yard, and then writes the number into a small book that his mother gave to him years ago. "
    "How many legs does he count when all the animals are standing there in plain sight of him and none is hidden?"
)
EVALUATION = "Find the largest prime that divides the number of ways to seat eight guests around two round tables."


def codes(config=None, questions=None, **changes):
    return [finding.code for finding in check_record(parse_record(raw_record(**changes)), config, questions)]


def questions_file(folder, text, name="questions.txt"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def run(folder, prompts, output="out", **audit):
    rows = [{"prompt": prompt, "answer": "a", "task": "exact"} for prompt in prompts]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = SourceConfig("jsonl", {"path": str(folder / "rows.jsonl")})
    config = PrepareConfig(
        source, str(folder / output), shard_size=2, max_rejected_share=1.0, audit=AuditConfig(**audit)
    )
    return prepare(config, console=Console(file=io.StringIO()))


def test_signatures_estimate_the_share_of_common_words():
    one, other = signature(LONG), signature(LONG.replace("a small book", "a little book"))
    assert similarity(one, one) == 1
    assert 0.85 < similarity(one, other) < 1
    assert similarity(one, signature(" ".join(reversed(LONG.split())))) < 0.1


def test_near_duplicates_need_the_same_numbers_and_images():
    database = sqlite3.connect(":memory:")
    signatures = Signatures(database, 0)
    sketch = signature(LONG)
    signatures.add(near_keys(LONG, b"image", sketch), sketch, "first", 0)

    def found(text, images=b"image"):
        sketch = signature(text)
        return signatures.find(near_keys(text, images, sketch), sketch, 0.8)

    assert found(LONG.replace("small book", "little book")) == "first"
    assert found(LONG.upper()) == "first"
    assert found(LONG.replace("12 hens", "14 hens")) is None
    assert found(LONG, b"other image") is None
    assert Signatures(database, 0).find(near_keys(LONG, b"image", sketch), sketch, 0.8) is None, "uncommitted shards"


def test_a_preparation_counts_or_sets_aside_near_duplicates_over_shards(tmp_path):
    prompts = [LONG, "What is a hen?", LONG.replace("12", "13"), LONG.replace("hill by", "hill near"), "And a sheep?"]
    warned = run(tmp_path, prompts, near_duplicate=0.8)
    assert warned.records == 5
    assert warned.audit["counts"]["examples"]["near_duplicate"] == ["rows-00000003"]
    strict = run(tmp_path, prompts, "strict", near_duplicate=0.8, severity={"near_duplicate": "reject"})
    assert (strict.records, strict.rejected) == (4, 1)
    assert "near_duplicate" not in run(tmp_path, prompts, "off", near_duplicate=1.0).audit["counts"]["findings"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "messages", "parquet"])
def test_prompts_that_hold_an_evaluation_question_are_found(tmp_path, kind):
    rows = [{"id": 1, "question": EVALUATION}, {"id": 2, "question": "What is 2 + 2?"}]
    if kind == "txt":
        path = questions_file(tmp_path, f"{EVALUATION}\n\nWhat is 2 + 2?\n")
    elif kind == "jsonl":
        path = questions_file(tmp_path, "\n".join(map(json.dumps, rows)), "q.jsonl")
    elif kind == "messages":
        chats = [{"prompt": [{"role": "user", "content": row["question"]}]} for row in rows]
        path = questions_file(tmp_path, "\n".join(map(json.dumps, chats)), "q.jsonl")
    else:
        path = str(tmp_path / "q.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    questions = EvaluationQuestions(path, 13)
    assert "evaluation_overlap" in codes(questions=questions, prompt=f"Please solve this. {EVALUATION.upper()} Think!")
    assert "evaluation_overlap" in codes(questions=questions, prompt="what is 2+2")
    for prompt in ("What is 2 + 2? And 3 + 3?", "What is 2 + 3?", "Find the largest prime that divides 91.", LONG):
        assert "evaluation_overlap" not in codes(questions=questions, prompt=prompt)


IN_ANY_SCRIPT = {
    "Chinese": (
        "一个水池有甲乙两个进水管，单独开甲管要三小时注满，单独开乙管要五小时注满，两管齐开要多久？",
        "请解答下面的题目。{}请写出答案。",
    ),
    "Japanese": (
        "太郎さんは家から駅まで毎分八十メートルの速さで歩き、帰りは毎分六十メートルで歩きました。平均の速さは？",
        "次の問題を解きなさい。{}以上です。",
    ),
    "Thai": (
        "รถไฟขบวนหนึ่งออกจากสถานีเวลาเก้าโมงเช้าด้วยความเร็วคงที่และถึงปลายทางเวลาเที่ยงวันพอดี ทั้งหมดเท่าไร",
        "จงตอบคำถามต่อไปนี้ {} ขอบคุณ",
    ),
    "Korean": (
        "철수는 사과 열두 개를 가지고 있었는데 그중 세 개를 동생에게 주고 남은 것을 친구 셋과 똑같이 나누면 "
        "몇 개씩 가집니까",
        "다음 문제를 풀어라. {} 끝.",
    ),
    "Hindi": (
        "एक किसान के पास बीस गायें और तीस बकरियाँ हैं और वह हर सुबह सब के पैर गिनता है तो कुल कितने पैर हैं",
        "हल करो: {} धन्यवाद",
    ),
}


@pytest.mark.parametrize("language", IN_ANY_SCRIPT)
def test_questions_and_near_duplicates_are_found_in_any_script(tmp_path, language):
    question, around = IN_ANY_SCRIPT[language]
    path = questions_file(tmp_path, question)
    changed = around.format(question[: len(question) // 2]) + "?"
    result = run(tmp_path, [around.format(question), changed[:20]], decontaminate=path)
    (entry,) = [json.loads(line) for line in (result.output / "rejected.jsonl").read_text().splitlines()]
    assert entry["index"] == 0
    assert "evaluation_overlap" in entry["reason"]
    long = " ".join([question, around, question[::-1]])
    near = run(tmp_path, [long, long + "!", question], "near", near_duplicate=0.9)
    assert near.audit["counts"]["examples"]["near_duplicate"] == ["rows-00000001"]


def test_a_phrase_that_many_questions_share_is_no_overlap(tmp_path):
    questions = EvaluationQuestions(
        questions_file(tmp_path, "关于重力的说法，下列说法中正确的是哪一个选项呢？请你选择"), 13
    )
    assert questions.overlap("关于光的折射现象，下列说法中正确的是哪一个选项呢？") is None
    assert questions.overlap("第三题。关于重力的说法，下列说法中正确的是哪一个选项呢？请你选择。") is not None


@pytest.mark.parametrize("template", ["{value}\n\nReason step by step.", "Question: {value} Answer:", None])
def test_a_question_is_compared_as_it_is_before_the_card_puts_its_template_around_it(tmp_path, template):
    """Both questions are short, and so are found as a whole only; the third shares the template alone."""
    card = {
        "title": "t", "homepage": "h", "licence": "l", "found_in": "f", "schema_checked": "s", "kind": "jsonl",
        "columns": {"prompt": "q", "answer": "a"}, "task": "exact", "prompt_template": template,
    }  # fmt: skip
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    rows = [
        {"q": q, "a": "1"} for q in ("How many legs has a hen?", "它有几条腿？", "How many legs has a hen or a goat?")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    evaluation = "how many legs has a hen\n它有几条腿\nQuestion: What is this? Answer:\n"
    config = {
        "source": {"card": str(tmp_path / "card.yaml"), "options": {"path": str(tmp_path / "rows.jsonl")}},
        "output": str(tmp_path / "out"),
        "max_rejected_share": 1.0,
        "audit": {"decontaminate": questions_file(tmp_path, evaluation)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = dopd_vl("prepare", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["index"] for entry in entries] == [0, 1]


def test_a_short_question_among_instructions_is_found_where_it_stands_on_a_line_of_its_own(tmp_path):
    questions = EvaluationQuestions(questions_file(tmp_path, "What is 2 + 2?"), 13)
    assert questions.overlap("Solve this problem.\nWhat is 2 + 2?\nPut the answer in a box.") == "what is 2 2"
    assert questions.overlap("Solve this problem. What is 2 + 2? And what is more?") is None


def test_a_preparation_keeps_evaluation_questions_out_and_knows_their_content(tmp_path):
    path = questions_file(tmp_path, EVALUATION)
    result = run(tmp_path, [EVALUATION, "What is a hen?"], decontaminate=path)
    assert (result.records, result.rejected) == (1, 1)
    questions_file(tmp_path, "Something else?")
    with pytest.raises(ValueError, match="overwrite"):
        run(tmp_path, [EVALUATION, "What is a hen?"], decontaminate=path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("q.jsonl", "{", "line 1 of .*no JSON"), ("q.jsonl", '{"a": 1}', "no question under"),
        ("q.txt", "\n", "no question"),
        ("q.parquet", "x", "parquet"), ("q.jsonl", "3", "no question under"),
    ],
)  # fmt: skip
def test_a_file_of_questions_that_cannot_be_used_is_told_of(tmp_path, name, text, reason):
    with pytest.raises(ConfigurationError, match=rf"audit\.decontaminate: .*{reason}"):
        run(tmp_path, ["a?"], decontaminate=questions_file(tmp_path, text, name))


def test_wrong_settings_name_their_key(tmp_path):
    for key, value in {
        "decontaminate": "/missing.txt", "near_duplicate": 0.1, "max_hint_words": 0, "decontaminate_ngram": 0
    }.items():  # fmt: skip
        with pytest.raises(ConfigurationError, match=rf"audit\.{key}: "):
            run(tmp_path, ["a?"], **{key: value})


def test_labels_in_a_script_of_neither_question_nor_answer_are_found():
    def label(text, prompt="Where is the cat?", answer="left"):
        boxes = [{"label": text, "bbox": [1, 1, 9, 9]}]
        return "label_language" in codes(prompt=prompt, answer=answer, privileged={"boxes": boxes})

    assert label("猫")
    assert label("кот")
    assert label("cat", "猫はどこ?", "左")
    assert not any([label("cat"), label("7"), label("chat"), label("OK 猫"), label("猫", answer="猫"), label("")])
    assert not any(
        [label("STOP", "标志上写着什么?", "停"), label("km", "多远?", "七"), label("塔", "东京タワー在哪?", "左")]
    )


def test_hints_over_the_budget_are_found():
    long = {"hints": ["word " * 201]}
    assert codes(privileged=long) == ["hint_too_long"]
    assert codes(AuditConfig(max_hint_words=201), privileged=long) == []
    assert codes(privileged={"hints": ["先想一想，再算一算。" * 51]}) == ["hint_too_long"]  # 8 signs, 4 words
    assert codes(privileged={"hints": ["先想一想，再算一算。" * 50]}) == []


def test_examples_in_docstrings_hold():
    assert doctest.testmod(contamination).failed == 0


def test_boxes_at_nearly_the_same_place_with_the_same_label_are_duplicates():
    def boxes(*places):
        listed = [{"label": label, "bbox": bbox} for label, bbox in places]
        return codes(privileged={"boxes": listed})

    assert boxes(("7", [1, 1, 29, 29]), ("7", [1, 1, 29, 28.5])) == ["box_duplicated"]
    assert boxes(("7", [1, 1, 29, 29]), ("2", [1, 1, 29, 28.5])) == []
    assert boxes(("7", [1, 1, 29, 29]), ("7", [1, 1, 29, 27])) == []  # 26/28 = 0.93


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_text_breaks_the_check_of_programs(answer, hint):
    assert code_leak([hint], answer, "") in (None, hint)


def test_deeply_nested_tests_of_a_task_are_no_trouble():
    assert code_leak(["Loop."], "[" * 900 + "]" * 900, "") is None
    assert code_leak(["Loop."], "[" * 100_000, "") is None


def test_common_results_are_good_hints_unless_their_input_stands_beside_them():
    tests = json.dumps({"fn_name": "count", "inputs": [[[5, 5]], [[]]], "outputs": [2, 0]})
    words = json.dumps({"inputs": ["3 4"], "outputs": ["YES"]})
    for hint in ("Return 0 for an empty list.", "Start a counter: it returns 2 at most.", "Print YES if it fits."):
        assert code_leak([hint], tests, "Write count.") is None
        assert code_leak([hint], words, "Decide.") is None
    assert code_leak(["For [5, 5] it returns 2."], tests, "Write count.")
    assert code_leak(["On 3 4 it prints YES."], words, "Decide.")


def test_results_in_a_test_harness_are_found():
    harness = {"entry_point": "f", "test_code": "def check(candidate):\n    assert candidate(9) == [3, 3, 1]"}
    assert code_leak(["The result for nine is [3, 3, 1]."], json.dumps(harness), "Write f.")
    assert code_leak(["Divide as long as it goes."], json.dumps(harness), "Write f.") is None
